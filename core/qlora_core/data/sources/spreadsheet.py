"""Rows of a spreadsheet, read by python-calamine: Excel's and OpenDocument's."""

import io
from importlib import import_module
from typing import Any

from qlora_core.data.sources.csv_rows import unique_header
from qlora_core.data.sources.formats import Row, Rows
from qlora_profiles.errors import EnvironmentProblem, UserError, first_line
from qlora_profiles.suggest import hint

FIX = "pip install python-calamine"


def spreadsheet_rows(data: bytes, name: str, sheet: str = "") -> tuple[Rows, list[str]]:
    """Rows of one sheet below its header, and which sheet that is where there are several; the first unless named.

    Raises:
        EnvironmentProblem: python-calamine is not installed.
        UserError: no spreadsheet, a damaged one, no such sheet, or a header that names a column twice.
    """
    try:
        calamine = import_module("python_calamine")
    except ImportError as error:
        raise EnvironmentProblem(f"{name}  spreadsheets need the package python-calamine", FIX) from error
    try:
        book = calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
        sheets: list[str] = list(book.sheet_names)
    except Exception as error:  # its own errors, and whatever a damaged file raises
        fix = "save it as CSV (UTF-8) there"
        raise UserError(f"{name}  no spreadsheet that can be read ({first_line(error)[:120]})", fix) from error
    if sheet and sheet not in sheets:
        raise UserError(f"{name}#{sheet}  has no such sheet{hint(sheet, sheets)}: {', '.join(sheets)}")
    chosen = sheet or sheets[0]
    others = [other for other in sheets if other != chosen]
    notes = [f"{name}: the sheet {chosen}; not read: {', '.join(others)}"] if others else []
    cells = book.get_sheet_by_name(chosen).to_python(skip_empty_area=False)
    return _rows(cells, name), notes


def _rows(lines: list[list[Any]], name: str) -> Rows:
    filled = [(number, line) for number, line in enumerate(lines, 1) if any(cell != "" for cell in line)]
    if not filled:
        return iter(())
    (first, header), *rest = filled
    names = [_text(cell) for cell in header]
    while names and not names[-1]:
        names.pop()
    columns = unique_header(names, name, first)
    return (Row(number, dict(zip(columns, map(_text, line), strict=False))) for number, line in rest)


def _text(cell: Any) -> str:
    """A cell as a CSV file would have it: whole numbers without a point, days and times as ISO text."""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell.isoformat() if hasattr(cell, "isoformat") else cell)
