"""Watching a running step from outside: memory that spills without an error, and care that was not needed."""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

RETRY_STEPS = 3
"""Steps in a row in which the allocator had to give memory back and ask again. All of these are set by hand."""
CLIFF = 0.4
"""Speed below this share of the usual, with memory at the cap, is taken for a spill."""
CLIFF_STEPS = 3
USUAL_STEPS = 20
AT_CAP = 0.97
PATIENCE_STEPS = 25
"""Quiet steps before a smaller execution is tried larger again; doubled each time that was too early."""


@dataclass(slots=True)
class PressureMonitor:
    """Says after each step whether the execution should shrink or may grow."""

    speeds: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL_STEPS))
    retries_in_a_row: int = 0
    slow_in_a_row: int = 0
    quiet_steps: int = 0
    patience: int = PATIENCE_STEPS
    grew_last: bool = False

    def after_step(self, tokens: int, seconds: float | None, new_retries: int, share_of_cap: float) -> str | None:
        """Why the execution should shrink, or ``None``.

        Args:
            tokens: of the step.
            seconds: that it took; ``None`` where something else was done in it.
            new_retries: allocation retries in it.
            share_of_cap: reserved memory over what is allowed.
        """
        self.retries_in_a_row = self.retries_in_a_row + 1 if new_retries else 0
        if seconds is not None:
            self._time(tokens / max(seconds, 1e-9), share_of_cap)
        self.quiet_steps += 1
        if self.retries_in_a_row >= RETRY_STEPS:
            return "the allocator kept running into the limit"
        return "speed fell off a cliff with memory at the limit" if self.slow_in_a_row >= CLIFF_STEPS else None

    def _time(self, speed: float, share_of_cap: float) -> None:
        slow = self._is_cliff(speed, share_of_cap)
        self.slow_in_a_row = self.slow_in_a_row + 1 if slow else 0
        if not slow:
            self.speeds.append(speed)

    def _is_cliff(self, speed: float, share_of_cap: float) -> bool:
        usual = len(self.speeds) >= CLIFF_STEPS and median(self.speeds)
        return bool(usual) and share_of_cap >= AT_CAP and speed < CLIFF * usual

    def shrunk(self) -> None:
        """The execution was made smaller: wait, and longer than before if it had just been made larger."""
        if self.grew_last:
            self.patience *= 2
        self._start_over(grew=False)

    def grown(self) -> None:
        """The execution was made larger again."""
        self._start_over(grew=True)

    def _start_over(self, grew: bool) -> None:
        self.grew_last = grew
        self.quiet_steps = self.retries_in_a_row = self.slow_in_a_row = 0
        self.speeds.clear()

    def may_grow(self) -> bool:
        """Whether it has been quiet for long enough to try the larger execution."""
        return self.quiet_steps >= self.patience
