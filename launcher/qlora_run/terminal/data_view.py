"""An inspection of data on a terminal: what is learned stands between {+ and +}, what is cut off between [- and -]."""

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from qlora_core.data import Inspection, Piece, ShownRow
from qlora_profiles.visible import visible
from qlora_run.report.data_words import bin_labels, facts, row_title, set_aside, title
from qlora_run.report.formatting import one_line
from qlora_run.terminal.cells import folded, wrapped
from qlora_run.terminal.console import console_glyphs
from qlora_run.terminal.glyphs import Glyphs

NARROWEST = 60
LABEL, INDENT, BAR_CELLS = 12, 2, 30
"""Terminal cells: of the narrowest screen, of labels, in front of a row's text, and of the longest bar."""
HEAD_LETTERS, HEAD_LINES = 320, 8
TAIL_LETTERS, TAIL_LINES = 100, 3
"""Of a long stretch of a row: how much is shown of its beginning and of its end."""
FIRST_PIECES, LAST_PIECES = 6, 3
"""Of a row of many turns."""
MARKS = {"given": ("", ""), "learned": ("{+", "+}"), "cut": ("[-", "-]")}
STYLES = {"given": "", "learned": "bold green", "cut": "red"}


def print_inspection(found: Inspection, console: Console) -> None:
    """Print on ``console``, coloured where it can be."""
    width = max(console.width, NARROWEST)
    for line in inspection_lines(found, console_glyphs(console), width):
        console.print(line, soft_wrap=True)


def inspection_lines(found: Inspection, glyphs: Glyphs, width: int) -> Iterator[Text]:
    """The screen in lines of at most ``width`` cells."""
    yield from (Text(line, style="bold") for line in wrapped(glyphs.spell(one_line(title(found))), width))
    for warning in found.warnings:
        yield from _hanging("WARNING", glyphs.spell(one_line(warning)), width, "bold red")
    for label, said in facts(found):
        yield from _hanging(label, glyphs.spell(one_line(said)), width)
        if label == "lengths" and len(found.lengths.histogram) > 1:
            yield from _bars(found, glyphs)
    for said in set_aside(found):
        yield from _hanging("set aside", glyphs.spell(one_line(said)), width, "yellow")
    for note in found.notes:
        yield from _hanging("note", glyphs.spell(one_line(note)), width, "yellow")
    if found.shown:
        cut = ", [-cut off-]" if found.cuts and found.cuts.rows else ""
        yield Text()
        yield Text("Rows: given, {+learned+}" + cut, style="dim")
    for row in found.shown:
        yield from _row(row, found, width)


def _hanging(label: str, said: str, width: int, style: str = "") -> Iterator[Text]:
    """A sentence behind its label, further lines below it."""
    for number, line in enumerate(wrapped(said, width - LABEL) or [""]):
        yield Text(f"{label if number == 0 else '':<{LABEL}}{line}", style=style)


def _bars(found: Inspection, glyphs: Glyphs) -> Iterator[Text]:
    bins, labels = found.lengths.histogram, bin_labels(found)
    most, cells = max(one.rows for one in bins), max(map(len, labels))
    for one, label in zip(bins, labels, strict=True):
        bar = glyphs.full * max(round(one.rows / most * BAR_CELLS), one.rows > 0)
        yield Text(f"{'':<{LABEL}}{label:>{cells}}  {bar}{' ' if bar else ''}{one.rows:,}", style="dim")


def _row(row: ShownRow, found: Inspection, width: int) -> Iterator[Text]:
    """Its title, and its text with the marks; a long one loses its middle."""
    yield Text()
    yield from (Text(line, style="bold cyan") for line in wrapped(row_title(row, found), width))
    text = Text(tab_size=4)
    for piece in _fewer(row.pieces):
        text.append(f"[{piece.role}] " if piece.role else "", style="bold")
        text.append(_marked(piece), STYLES[piece.kind]).append("\n" if piece.role else "")
    text.rstrip()
    for line in folded(text, width - INDENT):
        line.rstrip()
        yield Text(" " * INDENT).append_text(line)


def _marked(piece: Piece) -> str:
    """Its text between its marks; line breaks at its end stand behind them."""
    begins, ends = MARKS[piece.kind]
    text = _shortened(visible(piece.text))
    core = text.rstrip("\n")
    return begins + core + ends + text[len(core) :]


def _fewer(pieces: Sequence[Piece]) -> Sequence[Piece]:
    hidden = len(pieces) - FIRST_PIECES - LAST_PIECES
    if hidden < 2:
        return pieces
    gap = Piece(kind="given", text=f"\n... {hidden:,} more stretches ...\n")
    return (*pieces[:FIRST_PIECES], gap, *pieces[-LAST_PIECES:])


def _shortened(text: str) -> str:
    head = "\n".join(text[:HEAD_LETTERS].split("\n")[:HEAD_LINES])
    tail = "\n".join(text[-TAIL_LETTERS:].split("\n")[-TAIL_LINES:])
    hidden = len(text) - len(head) - len(tail)
    return f"{head} ... ({hidden:,} letters) ... {tail}" if hidden > TAIL_LETTERS else text
