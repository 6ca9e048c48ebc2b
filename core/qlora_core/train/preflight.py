"""Before the first step that counts: the heaviest step that the data can form, computed and measured on the card.

Nothing is learned by it. Its learning rate is zero, the adapter gets its first values again, and the random numbers
go on from where they were.
"""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from heapq import nlargest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from qlora_core.data.row_cache import CachedRows
from qlora_core.execution.limits import Limits
from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.inference.generate import Sampling, generate_ids
from qlora_core.memory.device_memory import autocast
from qlora_core.memory.oom import free_cached_memory
from qlora_core.memory.oom_retry import OPTIMIZER_WAYS, SAMPLE_WAYS
from qlora_core.model import lora_init
from qlora_core.model.packing import Example
from qlora_core.train.device_benchmark import measure_device
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qlora_core.train.trainer import StepTrainer

PHASE = "measuring the heaviest step"
CAUSE = "measured before the first step"
MOST_SECONDS = 25.0
"""Parts that would begin later than this are left out; set by hand, as the times below."""
ROUNDS = 3
LONG_STEP_SECONDS = 3.0
"""In a typical step that takes longer, what is new in the first of its kind hardly counts."""
ANSWER_SECONDS = 20.0
NEW_TOKENS = 8
KEPT_BACK_BYTES = 32 * MIB
"""What measuring may not take of the memory there is: the same tensors lie a little worse now and then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbePrompt:
    """A tokenised prompt and what ends its answer, for a short generation."""

    prompt_ids: Sequence[int]
    stop_ids: Sequence[int]


def heaviest(lengths: Sequence[int], token_budget: int, most: int) -> list[int]:
    """Rows (at most ``most``) of the largest micro-batch within the budget: the longest first, then what still fits.

    A row longer than the budget is a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    if lengths[order[0]] >= token_budget:
        return order[:1]
    taken: list[int] = []
    used = 0
    for index in order:
        if len(taken) < most and used + lengths[index] <= token_budget:
            taken.append(index)
            used += lengths[index]
    return taken


def lengths_of(rows: Sequence[Example]) -> list[int]:
    """Tokens of each row."""
    return rows.lengths if isinstance(rows, CachedRows) else [len(row.input_ids) for row in rows]


def preflight(trainer: "StepTrainer", prompt: ProbePrompt) -> None:
    """Measure, tell the launcher, and take the execution that it answers with, until both agree.

    The run never grows beyond that: what was given up here for want of memory did not fit the heaviest step.

    Raises:
        EnvironmentProblem: not even the smallest execution fits.
    """
    job, execution = trainer.job, trainer.execution
    start = time.monotonic()
    for round_number in range(ROUNDS):
        job.log.phase(PHASE)
        measured = _measured(PreflightMeasurement(trainer, prompt, start, complete=round_number == 0))
        job.memory.cap_again(int(measured["outside_bytes"]))
        job.log.write(events.MeasuredEvent, stage="preflight", **measured)
        answer = job.control.answer(ANSWER_SECONDS)
        measured_limits = execution.limits
        agreed = Limits(**json.loads(answer)) if answer else measured_limits
        execution.start_from(CAUSE, agreed)
        if agreed == measured_limits:
            return


def _measured(measurement: "PreflightMeasurement") -> dict[str, Any]:
    """Measure with a little memory kept back, or with all there is where nothing fits otherwise."""
    trainer = measurement.trainer
    with suppress(EnvironmentProblem), _state_restored(trainer), trainer.job.memory.kept_back(KEPT_BACK_BYTES):
        return measurement.measure()
    with _state_restored(trainer):
        return measurement.measure()


@contextmanager
def _state_restored(trainer: "StepTrainer") -> "Iterator[None]":
    """Put back all that a step leaves behind."""
    job = trainer.job
    cards = [job.memory.device] if job.memory.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        try:
            yield
        finally:
            trainer.optimizer = None
            job.loaded.model.zero_grad(set_to_none=True)
            lora_init.initialise(job.loaded.model, job.plan.recipe_values().seed)
            free_cached_memory(job.memory.device)
            job.memory.forget_peak()


class PreflightMeasurement:
    """One measuring: the parts of a run, each with its peak. A ``complete`` one has more than the step."""

    def __init__(self, trainer: "StepTrainer", prompt: ProbePrompt, start: float, complete: bool) -> None:
        self.trainer, self.job, self.execution, self.prompt = trainer, trainer.job, trainer.execution, prompt
        self.start, self.complete = start, complete
        self.lengths = lengths_of(self.job.train)
        self.longest = nlargest(self.job.plan.recipe_values().examples_per_step, self.lengths)
        self.heaviest = cache(self._heaviest)
        self.peaks: dict[str, int] = {}
        self.step_seconds: float | None = None

    def measure(self) -> dict[str, Any]:
        """The fields of a ``MeasuredEvent``."""
        self.job.loaded.model.train()  # layers recompute in training only
        self._part("step", self._heaviest_step)
        self._part("typical step", self._typical_step)
        if self.complete:
            self._part("evaluation", self._evaluation)
            self._part("checkpoint", self._checkpoint)
            self._part("generation", self._generation)
        outside = self.job.memory.outside_now_bytes()
        ceilings = self._ceilings() if self.complete and self._in_time() else None
        limits = self.execution.limits
        return {
            "limits": asdict(limits),
            "largest_tokens": self._tokens(self.heaviest(limits.token_budget)),
            "several_micro_batches": self._several(),
            "reserved_bytes": max(self.peaks.values(), default=0),
            "outside_bytes": outside,
            "step_tokens": float(self._tokens(self._typical_rows())),
            "step_seconds": self.step_seconds,
            "seconds": time.monotonic() - self.start,
            "peaks_bytes": self.peaks,
            "ceilings": ceilings,
        }

    def _in_time(self) -> bool:
        return time.monotonic() - self.start < MOST_SECONDS and not self.job.control

    def _part(self, name: str, work: Callable[[], None]) -> None:
        """One part of a run from an empty cache; the step itself is always computed."""
        if name != "step" and not self._in_time():
            return
        free_cached_memory(self.job.memory.device)
        self.job.memory.forget_peak()
        work()
        peak = self.job.memory.reserved_peak_bytes()
        if peak is not None:
            self.peaks[name] = peak

    def _heaviest_step(self) -> None:
        """Twice the largest micro-batch with an optimizer step between, as in a long run: state and gradients exist.

        Running out of memory makes the execution smaller; then the peak of the smaller one is what counts.
        """
        model, execution = self.job.loaded.model, self.execution
        was = None
        while was != execution.limits:
            was = execution.limits
            model.zero_grad(set_to_none=True)
            self.job.memory.forget_peak()
            execution.run(self._rows(self.heaviest(was.token_budget)))
            self._optimizer_step()
            if not self._several():
                model.zero_grad(set_to_none=True)
            execution.run(self._rows(self.heaviest(execution.limits.token_budget)))

    def _typical_step(self) -> None:
        """The first rows of the data as one step, against the clock; a short one once more, when nothing is new."""
        rows = self._rows(self._typical_rows())
        self.step_seconds = self._timed(rows)
        if self.step_seconds < LONG_STEP_SECONDS:
            self.step_seconds = self._timed(rows)

    def _timed(self, rows: list[Example]) -> float:
        """Seconds of a step of these rows."""
        self.job.memory.wait()
        start = time.perf_counter()
        self.job.loaded.model.zero_grad(set_to_none=True)
        float(self.execution.run(rows).loss)
        self._optimizer_step()
        self.job.memory.wait()
        return time.perf_counter() - start

    def _optimizer_step(self) -> None:
        """Clipping, and a step of length zero. Overflown float16 gradients would still ruin what it moves: adapters
        begin anew, a whole model could not.
        """
        plan = self.job.plan
        if plan.recipe_values().method == "full" and plan.execution_values().compute_dtype == "float16":
            return
        optimizer: Any = self.trainer.optimizer or self.trainer.create_optimizer()
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        self.trainer.clip_gradients()
        optimizer.step()

    def _evaluation(self) -> None:
        """The longest held-out rows: as many as one micro-batch takes."""
        held_out = self.job.held_out
        if not held_out:
            return
        rows = heaviest(lengths_of(held_out), self.execution.evaluation_token_budget, len(held_out))
        self.job.loaded.model.eval()
        self.execution.evaluate([held_out[i] for i in rows])
        self.job.loaded.model.train()

    def _checkpoint(self) -> None:
        """Write what a checkpoint holds, and read it back into an optimizer without state, as a resumed run does.

        The whole model of ``full`` is left out.
        """
        optimizer: Any = self.trainer.optimizer
        if self.job.plan.recipe_values().method == "full" or optimizer is None:
            return
        with TemporaryDirectory(dir=self.job.output, prefix=run_folder.PREFLIGHT_PREFIX) as folder:
            path = Path(folder) / "optimizer.pt"
            torch.save(optimizer.state_dict(), path)
            optimizer.state.clear()
            held = torch.load(path, map_location="cpu", weights_only=True)
            self.execution.run_beside_steps(lambda: optimizer.load_state_dict(held), OPTIMIZER_WAYS)

    def _generation(self) -> None:
        model, greedy = self.job.loaded.model, Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)
        model.eval()
        with autocast(self.job.plan.execution_values()):
            try:
                self.execution.run_beside_steps(
                    lambda: generate_ids(model, self.prompt.prompt_ids, self.prompt.stop_ids, greedy),
                    SAMPLE_WAYS,
                )
            except EnvironmentProblem as problem:
                self.job.log.warn(f"no room to answer a prompt: {problem.message}")
        model.train()

    def _ceilings(self) -> Any:
        if self.job.memory.device.type != "cuda":
            return None
        dtype = getattr(torch, self.job.plan.execution_values().compute_dtype)
        free_cached_memory(self.job.memory.device)
        try:
            return measure_device(self.job.memory.device, dtype)
        except torch.OutOfMemoryError:
            return None

    def _rows(self, indices: Sequence[int]) -> list[Example]:
        return [self.job.train[i] for i in indices]

    def _tokens(self, indices: Sequence[int]) -> int:
        return sum(self.lengths[i] for i in indices)

    def _heaviest(self, token_budget: int) -> list[int]:
        return heaviest(self.lengths, token_budget, len(self.longest))

    def _typical_rows(self) -> range:
        return range(len(self.longest))

    def _several(self) -> bool:
        """Whether a step of the longest rows has more than one micro-batch."""
        return len(make_micro_batches(self.longest, self.execution.limits.token_budget)) > 1
