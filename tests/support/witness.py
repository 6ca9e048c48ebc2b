"""A view of a run for tests."""

from collections.abc import Callable
from contextlib import suppress

import psutil

from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import Event
from qlora_run.report.run_state import RunState


class Witness:
    """A view that remembers, and may act at each tick."""

    def __init__(self, act: Callable[[RunState], None] = lambda state: None) -> None:
        self.act = act
        self.history: RunState | None = None
        self.events: list[Event] = []
        self.said: list[str] = []
        self.state = RunState()
        self.problem: QloraRunError | None = None
        self.ended = False

    def begin(self, state: RunState) -> None:
        self.history = state

    def event(self, event: Event, state: RunState) -> None:
        self.events.append(event)

    def tick(self, state: RunState) -> None:
        self.act(state)

    def say(self, text: str) -> None:
        self.said.append(text)

    def end(self, state: RunState, problem: QloraRunError | None) -> None:
        self.state, self.problem, self.ended = state, problem, True


def kill_children(word: str) -> None:
    """Kill this process's own children that have ``word`` in their command line."""
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # zombies too: another test's, not yet reaped
            if any(word in part for part in child.cmdline()):
                child.kill()
