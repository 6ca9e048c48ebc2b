"""Rows of a table as text: commas, semicolons, tabs or bars between its columns."""

import csv
import io
import json
import re
from collections import Counter
from typing import Any

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.schema import KNOWN_COLUMNS
from qlora_core.data.sources.formats import Row, Rows
from qlora_profiles.errors import UserError

CELL_CHARACTERS = 2**31 - 1  # the csv module's own limit is 128 KiB, too little for a long text
SEPARATORS = ",;\t|"


def csv_rows(text: str, name: str) -> Rows:
    """Rows of a CSV file with a header.

    Raises:
        UserError: the header is broken or names a column twice.
        BadRows: a quote is never closed, so no more can be read.
    """
    csv.field_size_limit(CELL_CHARACTERS)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text, name), strict=True)
    header = _header(reader, name)
    lines: list[str] = []
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
            lines = lines or io.StringIO(text, newline="").readlines()
            raw = "".join(lines[line - 1 : reader.line_num]).rstrip("\r\n")
            yield RowRejected(f"broken CSV: {_reason(error)}").row(name, line, raw)
            continue
        if cells:
            yield _cells_or_bad(name, line, header, cells)


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
