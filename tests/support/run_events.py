"""A run as its event file would tell it."""

import math
from collections.abc import Callable
from typing import Any

from qlora_profiles.events import (
    AdaptationEvent,
    CheckpointEvent,
    DoneEvent,
    EvalEvent,
    Event,
    PhaseEvent,
    RunEvent,
    Sample,
    SampleEvent,
    StepEvent,
    WarningEvent,
)
from qlora_profiles.units import GIB

START_S = 1_800_000_000.0
STEP_SECONDS = 10.0
LOADING_SECONDS = 20.0


def falling(step: int) -> float:
    """A loss that falls from 2.2 towards 1.2."""
    return 1.2 + math.exp(-step / 40)


def step_event(step: int, loss: float | None = None, **fields: Any) -> StepEvent:
    """An optimizer step of a run that began at ``START_S``."""
    known: dict[str, Any] = {
        "time_s": START_S + LOADING_SECONDS + step * STEP_SECONDS,
        "learning_rate": 2e-4,
        "grad_norm": 1.0,
        "supervised_tokens": 4800,
        "tokens": 14_960,
        "examples": 16,
        "micro_batches": 4,
        "step_seconds": STEP_SECONDS,
        "epoch": step / 122,
        "vram_peak_bytes": int(9.8 * GIB),
    }
    return StepEvent(step=step, loss=falling(step) if loss is None else loss, **known | fields)


def eval_event(step: int, loss: float, rows: tuple[float, ...] = ()) -> EvalEvent:
    """Held-out losses measured right after ``step``."""
    return EvalEvent(
        time_s=step_event(step).time_s + 1, step=step, loss=loss, rows=len(rows) or 50, row_losses=rows, seconds=1.5
    )


def checkpoint_event(step: int) -> CheckpointEvent:
    """A checkpoint written right after ``step``."""
    return CheckpointEvent(time_s=step_event(step).time_s + 2, step=step, path=f"runs/x/checkpoint-{step}")


def sample_event(step: int, answer: str) -> SampleEvent:
    """One prompt, answered."""
    samples = (Sample(prompt="Refund after 30 days?", answer=answer),)
    return SampleEvent(time_s=step_event(step).time_s + 3, step=step, samples=samples)


def run_event(steps: int, first_step: int = 1, time_s: float = START_S + LOADING_SECONDS) -> RunEvent:
    """Stepping can begin."""
    return RunEvent(
        time_s=time_s,
        steps_total=steps,
        first_step=first_step,
        trainable_params=43_646_976,
        recipe_digest="0" * 16,
        backend="peft",
        device="cuda",
        resumed_from=f"checkpoint-{first_step - 1}" if first_step > 1 else None,
    )


def done_event(step: int, status: Any = "finished", exit_code: int = 0, **fields: Any) -> DoneEvent:
    """The process says its last word."""
    seconds = step * STEP_SECONDS + LOADING_SECONDS
    return DoneEvent(
        time_s=step_event(step).time_s + 4, status=status, exit_code=exit_code, step=step, seconds=seconds, **fields
    )


def loading() -> list[Event]:
    """What happens before the first step."""
    return [
        PhaseEvent(time_s=START_S, name="preparing data"),
        PhaseEvent(time_s=START_S + 4, name="loading the model", done=12, total=36),
    ]


def run_events(steps: int = 100, loss: Callable[[int], float] = falling, every: int = 50) -> list[Event]:
    """A whole run with an evaluation and a checkpoint every so often, one adaptation and one warning."""
    before = sample_event(0, "I am an AI.\n\x1b[31mAsk me.")
    events: list[Event] = [*loading(), run_event(steps), before, eval_event(0, 2.11)]
    for step in range(1, steps + 1):
        if step == every // 2:
            events.append(adaptation(step))
        events.append(step_event(step, loss(step)))
        if step % every == 0 or step == steps:
            events += [eval_event(step, loss(step) + 0.1), checkpoint_event(step)]
    events.append(sample_event(steps, "Refunds close on day 30."))
    return [*events, done_event(steps)]


def adaptation(step: int) -> AdaptationEvent:
    """Memory ran out in ``step``."""
    return AdaptationEvent(
        time_s=step_event(step).time_s - 5,
        step=step,
        cause="out of memory",
        before={"token_budget": 4096, "layers_recomputed": 22},
        after={"token_budget": 2048, "layers_recomputed": 22},
    )


def warning(message: str) -> WarningEvent:
    """Something to know."""
    return WarningEvent(time_s=START_S + 30, message=message)
