"""Output that never breaks: any stream, any encoding, with or without a terminal."""

import os
import sys
from typing import TYPE_CHECKING, Any

from qlora_profiles.errors import QloraRunError
from qlora_run.terminal.glyphs import Glyphs, glyphs_for

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST, WIDEST = 20, 1000
PLAIN_WIDTH = 80
"""Cells of a line where no terminal tells."""


def make_console(stream: Any = None) -> "Console":
    """A rich console for ``stream`` (default: standard output) that cannot fail on a letter.

    Without a terminal it has no colour and 80 columns, unless COLUMNS says otherwise. Text is printed as it
    stands: brackets in a path are no markup, numbers get no colour of their own, control characters are spelled out.
    """
    from qlora_run.terminal.safe_console import SafeConsole

    stream = sys.stdout if stream is None else stream
    _never_fail(stream)
    terminal = stream.isatty()
    return SafeConsole(
        file=stream,
        width=_columns() or (None if terminal else PLAIN_WIDTH),
        force_terminal=None if terminal else False,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=True,
    )


def _columns() -> int | None:
    """The width that a person set, as far as lines can have it; rich would take 0, or a number of twenty digits."""
    said = os.environ.get("COLUMNS", "")
    return min(max(int(said[:9]), NARROWEST), WIDEST) if said.isdecimal() and said.strip("0") else None


def console_glyphs(console: "Console") -> Glyphs:
    """The signs for what ``console`` writes to."""
    return glyphs_for(console.file)


def print_error(error: QloraRunError, stream: Any = None) -> None:
    """Tell a person what is wrong and, behind ``->``, the way on; to standard error."""
    from rich.text import Text

    console = make_console(sys.stderr if stream is None else stream)
    glyphs = console_glyphs(console)
    text = Text(glyphs.spell(error.message), style="bold red")
    if error.fix:
        one_line = "\n" not in str(error) and len(str(error)) <= console.width
        text.append("  " if one_line else "\n  ").append(f"-> {glyphs.spell(error.fix)}", style="not bold default")
    console.print(text)


def _never_fail(stream: Any) -> None:
    """Letters that the stream's encoding lacks become ``?`` instead of an exception."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
