"""Texts laid into lines of so many terminal cells; a Chinese sign takes two."""

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

NEVER_FIRST = frozenset("，。、；：！？）》」』】”’…,.;:!?)]}")
"""Signs that begin no line where the text has no spaces."""


def fit(text: str, width: int) -> str:
    """``text`` in at most ``width`` terminal cells; what is cut off shows as three dots."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 3, 0)).rstrip() + "..."[:width]


def wrapped(text: str, width: int) -> list[str]:
    """``text`` broken at spaces, long words folded, into lines of at most ``width`` terminal cells."""
    from rich.console import Console
    from rich.text import Text

    paper = Console(file=io.StringIO(), width=width)
    return [line.plain.rstrip() for line in Text(text).wrap(paper, width)]


def folded(text: "Text", width: int) -> Iterator["Text"]:
    """``text`` in lines of at most ``width`` cells, its own line breaks kept; Chinese is broken between signs."""
    text.expand_tabs()
    for line in text.split("\n", allow_blank=True):
        yield from line.divide(_breaks(line.plain, width))


def _breaks(line: str, width: int) -> list[int]:
    """Where a line is cut: behind spaces, beside wide signs, else where it is full; spaces may stand over its end."""
    from rich.cells import cell_len

    found: list[int] = []
    start = best = filled = before = 0
    for at, sign in enumerate(line):
        cells = cell_len(sign)
        if at > start and sign not in NEVER_FIRST and (2 in (cells, before) or line[at - 1] == " "):
            best = at
        before = cells
        if filled + cells <= width:
            filled += cells
        elif sign != " ":
            start = best if best > start else at
            found.append(start)
            filled = cell_len(line[start : at + 1])
    return found


def join_fitting(parts: Iterable[str], separator: str, width: int, indent: str = "") -> list[str]:
    """``parts`` joined into as few lines of ``width`` cells as hold them, broken only between parts."""
    from rich.cells import cell_len

    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{separator}{part}" if lines else ""
        if lines and cell_len(longer) < width:  # a cell is kept for the separator at the line's end
            lines[-1] = longer
        else:
            lines[-1:] = [*(line + separator.rstrip() for line in lines[-1:]), indent + part]
    return lines
