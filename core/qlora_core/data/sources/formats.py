"""File formats: text or a Parquet file to rows, each with the line that it begins on."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.sources.json_text import excerpt_at, parse_line, parse_value, value_end
from qlora_profiles.errors import EnvironmentProblem, UserError

CELL_CHARACTERS = 2**31 - 1  # the csv module's own limit is 128 KiB, too little for a long text
WHITESPACE = " \t\r\n"


class Row(NamedTuple):
    """One row as it stands in the file: ``line`` counts from 1, ``text`` is its own text where it has one."""

    line: int
    columns: dict[str, Any]
    text: str = ""

    @property
    def raw(self) -> str:
        """The row as text, made from its columns where the file holds none."""
        return self.text or json.dumps(self.columns, ensure_ascii=False, default=str)


Rows = Iterator[Row | BadRow]


def json_rows(text: str, name: str) -> tuple[str, Callable[[str, str], Rows]]:
    """What JSON text really holds, whatever the file is called: its name, and the reader for it."""
    first = text.lstrip(WHITESPACE)[:1]
    line_by_line = _first_line_is_whole(text)
    if first == "[" and not line_by_line:
        return "JSON", array_rows
    if first == "{" and not line_by_line and _spans_lines(text):
        return "JSON", stream_rows
    return "JSONL", jsonl_rows


def jsonl_rows(text: str, name: str) -> Rows:
    """One object per line; blank lines do not count. Lines end at \\n only, never inside a string."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(WHITESPACE):
            yield _row_or_bad(name, number, line.rstrip("\r"))


def array_rows(text: str, name: str) -> Rows:
    """The objects of one JSON list.

    Raises:
        BadRows: a fault in the list itself: the place is lost, so no more can be read.
    """
    place = _Place(text, name)
    pos = place.skip(text.index("[") + 1)
    if text[pos : pos + 1] == "]":
        return
    while True:
        row, pos = place.element(pos)
        yield row
        pos = place.skip(pos)
        char = text[pos : pos + 1]
        if char == "]":
            break
        if char != ",":
            raise place.lost(pos, "a comma is missing" if char else "it ends too early: a ] is missing")
        pos = place.skip(pos + 1)
    rest = place.skip(pos + 1)
    if rest < len(text):
        raise place.lost(rest, "more text after the closing ]")


def stream_rows(text: str, name: str) -> Rows:
    """Objects one after another, each written over several lines. Raises as ``array_rows``."""
    place = _Place(text, name)
    pos = place.skip(0)
    while pos < len(text):
        row, pos = place.element(pos)
        yield row
        pos = place.skip(pos)


def csv_rows(text: str, name: str) -> Rows:
    """Rows of a CSV file with a header.

    Raises:
        UserError: the header is broken or names a column twice.
        BadRows: a quote is never closed, so no more can be read.
    """
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    header = _header(reader, name)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                bad = RowRejected("a quote that opens in this row is never closed").row(name, line, "")
                raise BadRows([bad], 1, skippable=False) from error
            raw = "\n".join(text.split("\n")[line - 1 : reader.line_num])
            yield RowRejected(f"broken CSV: {_csv_reason(error)}").row(name, line, raw)
            continue
        if cells:
            yield _cells_or_bad(name, line, header, cells)


def parquet_rows(path: Path, name: str) -> Rows:
    """Rows of a Parquet file; ``line`` is the row's number.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        UserError: it is no Parquet file, or a damaged one.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentProblem("Parquet needs the package pyarrow", "pip install pyarrow") from error
    try:
        batches = parquet.ParquetFile(path).iter_batches()
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, columns in enumerate(rows, 1):
            yield Row(number, columns)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}  not a Parquet file, or a damaged one") from error


class _Place:
    """Where a reader is in a text; counts lines as it goes, so a whole file costs one pass."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self._counted, self._line = 0, 1

    def line(self, pos: int) -> int:
        """The line of ``pos``, which never goes back."""
        self._line += self.text.count("\n", self._counted, pos)
        self._counted = pos
        return self._line

    def skip(self, pos: int) -> int:
        """The next position that is not white space."""
        while pos < len(self.text) and self.text[pos] in WHITESPACE:
            pos += 1
        return pos

    def element(self, start: int) -> tuple[Row | BadRow, int]:
        """The row that begins at ``start`` and where it ends.

        Raises:
            BadRows: it is broken, so that where it ends cannot be told.
        """
        try:
            value, end = parse_value(self.text, start)
        except RowRejected as fault:
            end_of_bad = value_end(self.text, start)
            if end_of_bad is None:
                raise self._fatal(start if fault.at is None else fault.at, fault) from fault
            return fault.row(self.name, self.line(start), self.text[start:end_of_bad]), end_of_bad
        return _object_or_bad(self.name, self.line(start), value, self.text[start:end]), end

    def lost(self, pos: int, reason: str) -> BadRows:
        """The error for a fault at ``pos`` between two rows."""
        excerpt = excerpt_at(self.text, pos, ends_here=pos >= len(self.text))
        return self._fatal(pos, RowRejected(f"broken JSON: {reason}", excerpt=excerpt))

    def _fatal(self, pos: int, fault: RowRejected) -> BadRows:
        way_on = "mend it, or write one object per line (.jsonl) so that single rows can be set aside"
        row = RowRejected(fault.reason, fix=way_on, excerpt=fault.excerpt).row(self.name, self.line(pos), "")
        return BadRows([row], 1, skippable=False)


def _row_or_bad(name: str, line: int, raw: str) -> Row | BadRow:
    try:
        value = parse_line(raw)
    except RowRejected as fault:
        return fault.row(name, line, raw)
    return _object_or_bad(name, line, value, raw)


def _object_or_bad(name: str, line: int, value: Any, raw: str) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(line, value, raw)
    kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return RowRejected(f"the row is {kind}, not an object {{...}}").row(name, line, raw)


def _first_line_is_whole(text: str) -> bool:
    """Whether the first line is a row of its own: an object, or a list that more such lines follow."""
    first, _, rest = text.lstrip(WHITESPACE).partition("\n")
    try:
        value = parse_line(first)
    except RowRejected:
        return False
    return isinstance(value, dict) or rest.lstrip(WHITESPACE).startswith("[")


def _spans_lines(text: str) -> bool:
    start = len(text) - len(text.lstrip(WHITESPACE))
    try:
        _, end = parse_value(text, start)
    except RowRejected:
        # an object opened on a line by itself is written over several lines, broken or not
        return text[start:].partition("\n")[0].strip(WHITESPACE) == "{"
    return "\n" in text[start:end]


def _delimiter(text: str) -> str:
    """The sign between columns: a comma, unless the header has none and another sign instead."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return next((sign for sign in ",;\t" if sign in header), ",")


def _header(reader: Any, name: str) -> list[str]:
    try:
        cells: list[str] = next((row for row in reader if row), [])
    except csv.Error as error:
        raise UserError(f"{name}:1  broken CSV header: {_csv_reason(error)}") from error
    header = [cell.strip() for cell in cells]
    twice = {cell for cell in header if header.count(cell) > 1}
    if twice:
        raise UserError(f"{name}:1  the header names a column twice: {', '.join(sorted(twice))}")
    return header


def _cells_or_bad(name: str, line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) == len(header):
        return Row(line, dict(zip(header, cells, strict=True)))
    fault = f"{len(cells)} cells, the header has {len(header)}: text with a comma, quote or line break wants quotes"
    return RowRejected(fault).row(name, line, json.dumps(cells, ensure_ascii=False))


def _csv_reason(error: csv.Error) -> str:
    return "a quote inside the text is not doubled" if "expected after" in str(error) else str(error)
