"""What the core says while it works: one JSON object a line in ``events.jsonl``, only ever appended.

The live view, the report and an examination after a crash read the same file.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from qlora_profiles.facts import Ceilings


class _Event(Struct, frozen=True, kw_only=True, tag_field="type"):
    """``time_s`` is seconds since the epoch."""

    time_s: float


class RunEvent(_Event, frozen=True, kw_only=True, tag="run"):
    """A process began or resumed: written once the first step can start, within ``limits``.

    ``best_lost`` is true where the best adapter of the steps before was gone or damaged: none of them can be kept.
    """

    steps_total: int
    first_step: int
    trainable_params: int
    recipe_digest: str
    backend: str
    device: str
    resumed_from: str | None = None
    limits: dict[str, Any] = {}
    best_lost: bool = False


class PhaseEvent(_Event, frozen=True, kw_only=True, tag="phase"):
    """What is being done when it is not a step: loading, preparing data, merging."""

    name: str
    done: int | None = None
    total: int | None = None


class StepEvent(_Event, frozen=True, kw_only=True, tag="step"):
    """One optimizer step. ``loss`` is nats per supervised token; tokens count the whole step.

    ``grad_norm`` is before clipping; ``None`` where it overflowed and the scaler left the step out (float16).
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float | None
    supervised_tokens: int
    tokens: int
    examples: int
    micro_batches: int
    step_seconds: float
    epoch: float
    vram_peak_bytes: int | None = None


class EvalEvent(_Event, frozen=True, kw_only=True, tag="eval"):
    """Held-out rows: mean loss in nats per supervised token, and each row's own mean loss, in the order of the rows."""

    step: int
    loss: float
    rows: int
    row_losses: tuple[float, ...] = ()
    seconds: float = 0.0


class Sample(Struct, frozen=True, kw_only=True):
    """A prompt and what the model answered."""

    prompt: str
    answer: str


class SampleEvent(_Event, frozen=True, kw_only=True, tag="sample"):
    """Answers to the sample prompts at a step; step 0 is before training."""

    step: int
    samples: tuple[Sample, ...]


class CheckpointEvent(_Event, frozen=True, kw_only=True, tag="checkpoint"):
    """A complete checkpoint lies at ``path``."""

    step: int
    path: str


class AdaptationEvent(_Event, frozen=True, kw_only=True, tag="adaptation"):
    """The execution changed in mid-run, the recipe did not; a step that ran out of memory was done again.

    ``before`` and ``after`` have what changed, by name: limits, and ``evaluation_token_budget`` (tokens) where held-out
    rows need smaller micro-batches than a step.
    """

    step: int
    cause: str
    before: dict[str, Any]
    after: dict[str, Any]


class MeasuredEvent(_Event, frozen=True, kw_only=True, tag="measured"):
    """What the device held and took for an execution that did not change meanwhile.

    ``stage`` is "preflight" (the heaviest step of the data, before the first one that counts) or "run" (all of its
    steps). ``limits`` are the execution settings that may change in mid-run, ``largest_tokens`` the tokens of the
    largest micro-batch. ``reserved_bytes`` is the most that torch's allocator held, ``outside_bytes`` what the
    process held beside it. ``peaks_bytes`` has the reserved memory by part of a preflight.
    """

    stage: Literal["preflight", "run"]
    limits: dict[str, Any]
    largest_tokens: int
    several_micro_batches: bool
    reserved_bytes: int
    outside_bytes: int
    step_tokens: float | None = None
    step_seconds: float | None = None
    seconds: float = 0.0
    peaks_bytes: dict[str, int] = {}
    ceilings: Ceilings | None = None


class ReadBack(Struct, frozen=True, kw_only=True):
    """What was saved, loaded again by plain transformers in a process of its own.

    ``state`` is "same" as what was trained, "different" (``faults`` say how), or "unchecked" (``unchecked`` says why;
    it also names what was left out beside checks that were made). ``rows`` were rendered and tokenised again in each
    of ``folders``; ``logits`` is whether a row went through the weights of all of them. ``seconds`` were waited.
    """

    state: Literal["same", "different", "unchecked"]
    folders: tuple[str, ...]
    rows: int
    logits: bool
    faults: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """All of it in one line."""
        why = "; ".join(self.unchecked)
        if self.state == "different":
            return "; ".join(self.faults)
        if self.state == "unchecked":
            return f"not checked: {why}"
        what = f"row{'' if self.rows == 1 else 's'}" + (", template and logits" if self.logits else " and template")
        line = f"{self.rows} {what} are the same in plain transformers ({self.seconds:.1f} s)"
        return f"{line}; not checked: {why}" if why else line


class ReadBackEvent(_Event, frozen=True, kw_only=True, tag="read_back"):
    """What a run saved was read back, or why not."""

    found: ReadBack


class WarningEvent(_Event, frozen=True, kw_only=True, tag="warning"):
    """Something a person should know that does not stop the run."""

    message: str


class DoneEvent(_Event, frozen=True, kw_only=True, tag="done"):
    """The last line of a process. ``exit_code`` as in ``errors``; ``message`` and ``fix`` when it failed.

    ``limits`` are those in force at the end, which may be others than the plan's; none where there was no model yet.
    """

    status: Literal["finished", "interrupted", "failed"]
    exit_code: int
    step: int
    seconds: float
    message: str | None = None
    fix: str | None = None
    artifacts: dict[str, str] = {}
    vram_peak_bytes: int | None = None
    limits: dict[str, Any] = {}


Event = (
    RunEvent
    | PhaseEvent
    | StepEvent
    | EvalEvent
    | SampleEvent
    | CheckpointEvent
    | AdaptationEvent
    | MeasuredEvent
    | ReadBackEvent
    | WarningEvent
    | DoneEvent
)

_decoder = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder()


def encode(event: Event) -> str:
    """One line of the file, newline included."""
    return _encoder.encode(event).decode("utf-8") + "\n"


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """The events from byte ``offset`` on, each with the offset behind it; none where there is no file.

    A last line without its newline is being written, or was cut off by a kill: it is left for the next call.
    A damaged line, as a full disk can leave it, is passed over.

    Raises:
        OSError: the file cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            with suppress(msgspec.DecodeError):
                yield _decoder.decode(line), offset


def all_events(path: Path) -> list[Event]:
    """Every complete event in the file. Raises as ``read_events``."""
    return [event for event, _ in read_events(path)]
