"""Progress on a terminal: a few lines that are drawn over."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import Event
from qlora_profiles.plan import RunPlan
from qlora_run.report.lines import opening_line
from qlora_run.report.run_state import RunState
from qlora_run.terminal.console import console_glyphs
from qlora_run.terminal.drawing import INDENT, Drawing
from qlora_run.terminal.summary import print_closing


class LiveView:
    """Draws the state anew at every tick."""

    def __init__(
        self, console: Console, plan: RunPlan, output: Path, temperature: Callable[[], int | None] = lambda: None
    ) -> None:
        self.console, self.plan, self.output, self.temperature = console, plan, output, temperature
        self.glyphs = console_glyphs(console)
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)

    def begin(self, state: RunState) -> None:
        """Say what begins and take over the bottom of the terminal."""
        self.say(opening_line(state, self.plan, self.output))
        self.live.start()
        self.tick(state)

    def event(self, event: Event, state: RunState) -> None:
        """The next tick shows it."""

    def tick(self, state: RunState) -> None:
        """Draw as of now."""
        self._draw(state, over=False)

    def say(self, text: str) -> None:
        """A line that stays, above the drawing."""
        self.console.print(self.glyphs.spell(text))

    def end(self, state: RunState, problem: QloraRunError | None) -> None:
        """Leave the last drawing, and close with the summary or with what went wrong."""
        self._draw(state, over=True)
        self.live.stop()
        print_closing(self.console, state, self.plan, self.output, problem)

    def _draw(self, state: RunState, over: bool) -> None:
        drawing = Drawing(
            state=state,
            plan=self.plan,
            now_s=time.time(),
            glyphs=self.glyphs,
            width=self.console.width,
            celsius=self.temperature(),
            over=over,
        )
        lines = drawing.lines()[: max(self.console.height - 1, 1)]
        self.live.update(Group(*map(_styled, lines)), refresh=True)


def _styled(line: str) -> Text:
    """The label in front set off by colour; no meaning hangs on it."""
    text = Text(line, no_wrap=True, overflow="crop")
    text.stylize("yellow" if line[:1].isdigit() else "cyan", 0, len(INDENT))
    return text
