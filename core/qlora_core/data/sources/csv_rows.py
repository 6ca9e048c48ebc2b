"""Rows of a table as text: commas, semicolons, tabs or bars between its columns."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Generator
from typing import Any

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.schema import KNOWN_COLUMNS
from qlora_core.data.sources.formats import Row, Rows
from qlora_profiles.errors import UserError

CELL_CHARACTERS = 2**31 - 1  # the csv module's own limit is 128 KiB, too little for a long text
SEPARATORS = ",;\t|"
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t])"?\s*$')  # Excel's own first line
FEWEST_SWALLOWED = 3  # lines of one row, from which on they may be rows that a quote swallowed
ROWS_AMONG_LINES = 0.8
LINES_LOOKED_AT = 20
"""Of so many lines below an open quote so large a share must look like rows. All set by hand."""


class CsvRows:
    """The rows of a CSV file with a header; ``swallowed`` tells cells that may hold rows, as (line, lines in it)."""

    def __init__(self, text: str, name: str) -> None:
        csv.field_size_limit(CELL_CHARACTERS)
        self.swallowed: list[tuple[int, int]] = []
        self._name = name
        self._lines = io.StringIO(text, newline="").readlines()

    def __iter__(self) -> Rows:
        """The rows, good and bad.

        Raises:
            UserError: the header is broken or names a column twice.
            BadRows: a quote is never closed, and what follows are no rows of their own.
        """
        told = _SEPARATOR_LINE.match(self._lines[0]) if self._lines else None
        start = 1 if told else 0
        self._sign = told[1] if told else _separator("".join(self._lines[start : start + LINES_LOOKED_AT]), self._name)
        reader = self._reader(start)
        header = _header(reader, self._name)
        start += reader.line_num
        while start < len(self._lines):
            start = yield from self._rows(start, header)

    def _reader(self, start: int) -> Any:
        lines = (self._lines[at] for at in range(start, len(self._lines)))
        return csv.reader(lines, delimiter=self._sign, strict=True)

    def _rows(self, start: int, header: list[str]) -> Generator[Row | BadRow, None, int]:
        """The rows from a line on, up to a quote that swallowed other rows; where to read on."""
        reader = self._reader(start)
        while True:
            first = start + reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                return len(self._lines)
            except csv.Error as error:
                row, end = self._broken(error, first, start + reader.line_num, header)
                yield row
                if end < start + reader.line_num:
                    return end
                continue
            lines = start + reader.line_num - first
            if lines >= FEWEST_SWALLOWED and self._are_rows(first + 1, first + lines, header):
                self.swallowed.append((first + 1, lines))
            if cells:
                yield _cells_or_bad(self._name, first + 1, header, cells)

    def _broken(self, error: csv.Error, first: int, end: int, header: list[str]) -> tuple[BadRow, int]:
        """The row that begins on the line ``first`` and cannot be read, and the line behind it.

        A quote that is left open reaches into the rows below it: they are read by themselves.
        """
        endless = "unexpected end" in str(error)
        swallows = (not endless or end - first >= FEWEST_SWALLOWED) and self._are_rows(first + 1, end, header)
        if swallows or (endless and end == first + 1):
            open_quote = RowRejected("a quote that opens in this row is not closed in it")
            return open_quote.row(self._name, first + 1, self._lines[first].rstrip("\r\n")), first + 1
        if endless:
            bad = RowRejected("a quote that opens in this row is never closed")
            raise BadRows([bad.row(self._name, first + 1, "")], 1, skippable=False) from error
        raw = "".join(self._lines[first:end]).rstrip("\r\n")
        return RowRejected(f"broken CSV: {_reason(error)}").row(self._name, first + 1, raw), end

    def _are_rows(self, first: int, end: int, header: list[str]) -> bool:
        """Whether most of these lines have as many cells as the header, with no blank behind a separator as prose has
        it."""
        lines = self._lines[first : min(end, first + LINES_LOOKED_AT)]
        cells = [next(csv.reader([line], delimiter=self._sign), []) for line in lines]
        alike = sum(len(row) == len(header) and not any(cell[:1] == " " for cell in row[1:]) for row in cells)
        return bool(lines) and alike >= ROWS_AMONG_LINES * len(lines)

    def warnings(self) -> list[str]:
        """A sentence on cells that may hold rows of their own, for want of a quote."""
        if not self.swallowed:
            return []
        line, lines = self.swallowed[0]
        more = f", and {len(self.swallowed) - 1:,} more such cells" if len(self.swallowed) > 1 else ""
        return [
            f"{self._name}:{line} a quoted cell goes over {lines:,} lines, each of which looks like a row of its own"
            f"{more}: is a closing quote missing there? Read as one row, as it is written"
        ]


def _separator(text: str, name: str) -> str:
    """The sign between columns: the one that gives the most columns known by name, then the first that is there."""
    header = re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    order = "\t" + SEPARATORS if name.lower().endswith((".tsv", ".tsv.txt")) else SEPARATORS
    there = [sign for sign in order if sign in header] or [order[0]]

    def known(sign: str) -> int:
        return sum(cell.strip(' "').lower() in KNOWN_COLUMNS for cell in header.split(sign))

    return max(there, key=known)


def _header(reader: Any, name: str) -> list[str]:
    try:
        cells: list[str] = next((row for row in reader if row), [])
    except csv.Error as error:
        raise UserError(f"{name}:1  broken CSV header: {_reason(error)}") from error
    return unique_header(cells, name)


def unique_header(cells: list[str], name: str, line: int = 1) -> list[str]:
    """The names of columns, those without one by number. Raises UserError where two are the same."""
    header = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    twice = sorted(cell for cell, count in Counter(header).items() if count > 1)
    if twice:
        shown = ", ".join(cell[:60] for cell in twice[:5]) + (", ..." if len(twice) > 5 else "")
        raise UserError(f"{name}:{line}  the header names a column twice: {shown}", "another name for one of them")
    return header


def _cells_or_bad(name: str, line: int, header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) == len(header):
        return Row(line, dict(zip(header, cells, strict=True)))
    fault = f"{len(cells)} cells, the header has {len(header)}: text with a comma, quote or line break wants quotes"
    return RowRejected(fault).row(name, line, json.dumps(cells, ensure_ascii=False))


def _reason(error: csv.Error) -> str:
    return "a quote inside the text is not doubled" if "expected after" in str(error) else str(error)
