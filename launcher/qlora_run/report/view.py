"""What whoever shows a run must be able to take in."""

from typing import Protocol

from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import Event
from qlora_run.report.run_state import RunState


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
