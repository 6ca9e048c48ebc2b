"""Texts laid into lines of so many terminal cells; a Chinese sign takes two."""

import io
from collections.abc import Iterable


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
