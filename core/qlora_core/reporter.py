"""What is said and decided after each step. On a card a step is looked at while the next one is computed.

Waiting for a step's loss before launching the next step would leave the card without work in between.
"""

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from qlora_core.checkpoints import mark_complete
from qlora_core.evaluate import evaluate
from qlora_core.step.runner import StepResult
from qlora_profiles import events, run_folder
from qlora_profiles.errors import UserError

if TYPE_CHECKING:
    from qlora_core.trainer import Job, StepTrainer

AHEAD = {"cuda": 1}
"""Steps that may be launched before one is looked at, by device; a CPU computes while it launches."""


class Moment:
    """A moment in what a device does, or of the clock where it does things at once."""

    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        self._clock = time.perf_counter()
        if self._event is not None:
            self._event.record()

    def wait(self) -> None:
        """Until it is over."""
        if self._event is not None:
            self._event.synchronize()

    def seconds_until(self, later: "Moment") -> float:
        """Both are over."""
        if self._event is None or later._event is None:
            return later._clock - self._clock
        return float(self._event.elapsed_time(later._event)) / 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step that was launched. ``numbers`` are its loss and its gradient's norm, on their way from the device."""

    number: int
    epoch: float
    result: StepResult
    learning_rate: float
    numbers: Tensor
    begun: Moment
    ended: Moment
    captured: bool


class Reporter(TrainerCallback):
    """Writes the events, measures the held-out rows, marks checkpoints and obeys a stop."""

    def __init__(self, trainer: "StepTrainer") -> None:
        self.trainer = trainer
        self._begun: Moment | None = None
        self._open: deque[Step] = deque()

    @property
    def job(self) -> "Job":
        """What the trainer stands on."""
        return self.trainer.job

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Held-out loss before the first step; a resumed run has it already."""
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock: behind a step that is still computed, when that one ends."""
        self._begun = self._open[-1].ended if self._open else Moment(args.device)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Report steps, measure on time, stop when asked."""
        self._open.append(self._launched(state, args.device))
        due = state.global_step % self.job.plan.run_values().eval_steps == 0 or state.global_step == state.max_steps
        control.should_save |= state.global_step == state.max_steps
        if self.job.stop:
            control.should_save = control.should_training_stop = True
        ahead = 0 if due or control.should_save else AHEAD.get(args.device.type, 0)
        while len(self._open) > ahead:
            self._settle(self._open.popleft())
        if due:
            self._evaluate(state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint's files are all there: mark it."""
        if not self.job.ranks.writes:
            return
        folder = run_folder.checkpoint_folder(self.job.output, state.global_step)
        mark_complete(folder, state.global_step, self.job.plan.recipe_digest())
        self.job.log.write(events.CheckpointEvent, step=state.global_step, path=str(folder))

    def _launched(self, state: Any, device: torch.device) -> Step:
        trainer = self.trainer
        assert trainer.last is not None
        assert self._begun is not None
        assert trainer.last_grad_norm is not None
        numbers = torch.stack((trainer.last.loss.float(), trainer.last_grad_norm.float()))
        if device.type == "cuda":
            numbers = torch.empty(2, pin_memory=True).copy_(numbers, non_blocking=True)
        return Step(
            number=state.global_step,
            epoch=float(state.epoch or 0.0),
            result=trainer.last,
            learning_rate=trainer.last_learning_rate,
            numbers=numbers,
            begun=self._begun,
            ended=Moment(device),
            captured=trainer.captured(),
        )

    def _settle(self, step: Step) -> None:
        """Wait for a step, write it down and draw the consequences.

        Raises:
            UserError: its loss is no number.
        """
        step.ended.wait()
        loss, norm = step.numbers.tolist()
        if loss != loss or abs(loss) == float("inf"):
            raise UserError(
                f"step {step.number}: the loss is {loss}; training fell apart",
                f"--learning-rate {self.trainer.args.learning_rate / 4:g}",
            )
        seconds = step.begun.seconds_until(step.ended)
        self._report(step, loss, norm if abs(norm) < float("inf") else None, seconds)
        usual_seconds = None if step.captured else seconds
        self.trainer.tally.add(step.result, usual_seconds)
        self._watch(step.result, usual_seconds)

    def _report(self, step: Step, loss: float, norm: float | None, seconds: float) -> None:
        last = step.result
        self.job.log.write(
            events.StepEvent,
            step=step.number,
            loss=loss,
            learning_rate=step.learning_rate,
            grad_norm=norm,
            supervised_tokens=last.supervised_tokens,
            tokens=last.tokens,
            examples=last.examples,
            micro_batches=last.micro_batches,
            step_seconds=seconds,
            epoch=step.epoch,
            vram_peak_bytes=self.job.memory.peak_bytes(),
        )

    def _watch(self, last: StepResult, seconds: float | None) -> None:
        """Shrink before memory spills silently; grow back when a smaller execution was too careful."""
        trainer = self.trainer
        cause = trainer.guard.after_step(last.tokens, seconds, *self.job.memory.pressure())
        if cause is not None and trainer.runner.shrink(cause, last.lengths):
            trainer.guard.shrunk()
            trainer.tally.adapted = True
        elif trainer.guard.may_grow():
            larger = trainer.runner.limits.larger(trainer.most)
            if larger is not None:
                trainer.runner.change("it had been quiet for a while", larger)
                trainer.tally.adapted = True
            trainer.guard.grown()

    def _evaluate(self, step: int) -> None:
        if not self.job.held_out:
            return
        start = time.perf_counter()
        self.job.log.phase("measuring the held-out rows")
        model = self.job.loaded.model
        model.eval()
        execution = self.job.plan.execution_values()
        held_out = self.trainer.with_room(
            lambda: evaluate(
                self.trainer.scorer,
                self.job.held_out,
                self.trainer.runner.limits.token_budget,
                self.trainer.args.device,
                execution.pin_memory,
            ),
            "--val-size 0",
        )
        model.train()
        if self.job.best is not None:
            self.job.best.offer(model, step, held_out.loss)
        self.job.log.write(
            events.EvalEvent,
            step=step,
            loss=held_out.loss,
            rows=len(self.job.held_out),
            row_losses=held_out.row_losses,
            seconds=time.perf_counter() - start,
        )
