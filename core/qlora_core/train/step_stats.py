"""What the steps of this process were like, for the measurement at its end."""

from dataclasses import dataclass, field

from qlora_core.train.step import StepResult

MOST_STEPS = 500


@dataclass(slots=True)
class StepStats:
    """Sizes and times of the steps since the second: the first one warms up. ``adapted`` once the execution changed."""

    adapted: bool = False
    largest_tokens: int = 0
    several_micro_batches: bool = False
    step_tokens: list[int] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    seen: int = 0

    def add(self, step: StepResult, seconds: float | None) -> None:
        """Count one step; without ``seconds`` where its time was unusual."""
        self.seen += 1
        self.largest_tokens = max(self.largest_tokens, step.largest_tokens)
        self.several_micro_batches |= step.micro_batches > 1
        if 1 < self.seen <= MOST_STEPS and seconds is not None:
            self.step_tokens.append(step.tokens)
            self.step_seconds.append(seconds)
