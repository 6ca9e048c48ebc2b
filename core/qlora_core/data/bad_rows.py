"""Rows that cannot be used: the value, the error that shows them, and the file they are set aside in."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from qlora_profiles.errors import UserError
from qlora_profiles.run_folder import REJECTED_ROWS
from qlora_profiles.visible import on_one_line

SHOWN_ROWS = 10
SHOWN_LINES = 5


class BadRow(Struct, frozen=True, kw_only=True):
    """One row that cannot be used: where, why, the text around the fault, the way on, and the row itself.

    ``number`` counts rows from 1, and is 0 where the line alone tells which row it is. ``between`` says that the fault
    lies between two rows: none is lost when it is read past.
    """

    file: str
    line: int
    reason: str
    excerpt: str = ""
    fix: str = ""
    raw: str = ""
    number: int = 0
    between: bool = False

    def shown(self) -> str:
        """``my.jsonl:42  reason  -> fix`` and, on a line of its own, the excerpt."""
        row = f", row {self.number}" if self.number else ""
        way_on = f"  -> {self.fix}" if self.fix else ""
        excerpt = f"\n  {self.excerpt}" if self.excerpt else ""
        return f"{self.file}:{self.line}{row}  {self.reason}{way_on}{excerpt}"


class RowRejected(Exception):
    """Raised while a row is read: it cannot be used, for this reason. Never leaves the data package.

    ``at`` is the fault's position in the text that was read, where that is known.
    """

    def __init__(self, reason: str, *, fix: str = "", excerpt: str = "", at: int | None = None) -> None:
        super().__init__(reason)
        self.reason = on_one_line(reason)
        self.fix = on_one_line(fix)
        self.excerpt = excerpt
        self.at = at

    def row(self, file: str, line: int, raw: str, number: int = 0, *, between: bool = False) -> BadRow:
        """This reason as a value, at its place in the file."""
        return BadRow(
            file=file,
            line=line,
            reason=self.reason,
            excerpt=self.excerpt,
            fix=self.fix,
            raw=raw,
            number=number,
            between=between,
        )


class BadRows(UserError):
    """A file has rows that cannot be used. ``rows`` holds all of them, the message the first ten kinds.

    ``total_rows`` is the number of rows in the file. With ``skippable=False`` the reader lost its place,
    so setting rows aside is no way on.
    """

    def __init__(self, rows: Sequence[BadRow], total_rows: int, *, skippable: bool = True) -> None:
        self.rows = list(rows)
        self.total_rows = total_rows
        super().__init__(_message(self.rows), _way_on(self.rows, total_rows, skippable))

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.fix}" if self.fix else self.message


def write_rejected(path: Path, rows: Iterable[BadRow]) -> None:
    """Write one JSON object per bad row: line, its number in a list, reason, raw. Pure ASCII, so that broken text
    survives."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            number = {"row": row.number} if row.number else {}
            file.write(json.dumps({"line": row.line, **number, "reason": row.reason, "raw": row.raw}) + "\n")


def _message(rows: Sequence[BadRow]) -> str:
    """The first ten kinds of fault; the rows that share a reason are told with the first of them."""
    alike: dict[tuple[str, str], list[BadRow]] = {}
    for row in rows:
        alike.setdefault((row.reason, row.fix), []).append(row)
    kinds = list(alike.values())
    lines = [_kind(kind) for kind in kinds[:SHOWN_ROWS]]
    hidden = sum(len(kind) for kind in kinds[SHOWN_ROWS:])
    if hidden:
        lines.append(f"and {hidden:,} more bad {_rows(hidden)}")
    return "\n".join(lines)


def _kind(kind: Sequence[BadRow]) -> str:
    others = kind[1:]
    if not others:
        return kind[0].shown()
    numbers = ", ".join(str(row.number or row.line) for row in others[:SHOWN_LINES])
    dots = ", ..." if len(others) > SHOWN_LINES else ""
    where = ("row" if others[0].number else "line") + ("" if len(others) == 1 else "s")
    between = any(row.between for row in others)
    what = ("place" if len(others) == 1 else "places") if between else _rows(len(others))
    return f"{kind[0].shown()}\n  the same in {len(others):,} more {what}: {where} {numbers}{dots}"


def _way_on(rows: Sequence[BadRow], total_rows: int, skippable: bool) -> str | None:
    lost = sum(not row.between for row in rows)
    if not skippable or lost >= total_rows:
        return None
    aside = f"sets {lost:,} of {total_rows:,} {_rows(total_rows)} aside ({REJECTED_ROWS})"
    return f"--skip-bad-rows {aside if lost else f'reads past it; all {total_rows:,} {_rows(total_rows)} are there'}"


def _rows(count: int) -> str:
    return "row" if count == 1 else "rows"
