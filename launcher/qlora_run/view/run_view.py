"""Which view a run gets."""

from pathlib import Path
from typing import Any, Protocol

from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import Event
from qlora_profiles.plan import RunPlan
from qlora_run.view.state import RunState


class View(Protocol):
    """Somebody who is told what a run does. Called from one thread only."""

    def begin(self, state: RunState) -> None:
        """The process was started; ``state`` holds the history of a resumed run."""

    def event(self, event: Event, state: RunState) -> None:
        """``event`` happened; ``state`` is what it led to."""

    def tick(self, state: RunState) -> None:
        """Time passes: about five times a second."""

    def say(self, text: str) -> None:
        """The launcher itself has a line to say."""

    def end(self, state: RunState, problem: QloraRunError | None) -> None:
        """The process is over; ``problem`` is what went wrong, if anything did."""


def run_view(plan: RunPlan, output: Path, stream: Any = None) -> View:
    """A drawing on a terminal that can be drawn over, plain lines anywhere else (default: standard output)."""
    from qlora_run.view.console import make_console
    from qlora_run.view.live import LiveView
    from qlora_run.view.plain import PlainView
    from qlora_run.view.temperature import gpu_thermometer

    console = make_console(stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, plan, output, gpu_thermometer(plan.cards()))
    return PlainView(console, plan, output)
