"""What is said and decided after each step. On a card a step is looked at while the next one is computed.

Waiting for a step's loss before launching the next step would leave the card without work in between.
"""

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainingArguments

from qlora_core.train.checkpoints import delete_older, mark_complete
from qlora_core.train.execution import RunningExecution
from qlora_core.train.job import Job
from qlora_core.train.step import StepResult
from qlora_profiles import events, run_folder
from qlora_profiles.errors import UserError

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


@dataclass(slots=True)
class Latest:
    """What the trainer has of the step that it launched last. ``grad_norm`` is before clipping."""

    result: StepResult | None = None
    grad_norm: Tensor | None = None
    learning_rate: float = 0.0


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

    def __init__(self, job: Job, execution: RunningExecution, latest: Latest) -> None:
        self.job, self.execution, self.latest = job, execution, latest
        self._begun: Moment | None = None
        self._open: deque[Step] = deque()

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Held-out loss before the first step (a resumed run has it already), then all of the model in training mode.

        ``from_pretrained`` leaves the base in eval mode, and the wrapper that PEFT puts around it says that it trains:
        no dropout would be applied, and no layer would recompute, until somebody else calls ``train()``.
        """
        if state.global_step:
            self._check_trained(state.global_step)
        else:
            self._evaluate(0)
        self.job.loaded.model.train()

    def _check_trained(self, step: int) -> None:
        """Raise UserError where what is trained on holds no numbers, as after a checkpoint of a run that fell apart."""
        trained = (each for each in self.job.loaded.model.named_parameters() if each[1].requires_grad)
        name = next((name for name, values in trained if not all(map(math.isfinite, values.detach().aminmax()))), None)
        if name is not None:
            said = f"{name} holds NaN or infinite values before step {step + 1}"
            raise UserError(f"the checkpoint of step {step} is damaged: {said}", "--resume an earlier checkpoint")

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock: behind a step that is still computed, when that one ends."""
        self._begun = self._open[-1].ended if self._open else Moment(args.device)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Report steps, measure on time, stop when asked."""
        self._open.append(self._launched(state, args.device))
        due = state.global_step % self.job.plan.run_values().eval_steps == 0 or state.global_step == state.max_steps
        control.should_save |= state.global_step == state.max_steps
        if self.job.control:
            control.should_save = control.should_training_stop = True
        ahead = 0 if due or control.should_save else AHEAD.get(args.device.type, 0)
        while len(self._open) > ahead:
            self._settle(self._open.popleft())
        if due:
            self._evaluate(state.global_step)

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint's files are all there: make them last, mark it, and only then delete older ones."""
        if not self.job.ranks.writes:
            return
        plan, step = self.job.plan, state.global_step
        folder = run_folder.checkpoint_folder(self.job.output, step)
        self.job.log.sync()  # what led to a checkpoint is told wherever the checkpoint is
        mark_complete(folder, step, plan.recipe_digest(), plan.base_parts())
        self.job.log.write(events.CheckpointEvent, step=step, path=str(folder))
        delete_older(self.job.output, step, plan.run_values().save_total_limit)

    def _launched(self, state: Any, device: torch.device) -> Step:
        latest = self.latest
        assert self._begun is not None
        assert latest.result is not None
        assert latest.grad_norm is not None
        numbers = torch.stack((latest.result.loss.float(), latest.grad_norm.float()))
        if device.type == "cuda":
            numbers = torch.empty(2, pin_memory=True).copy_(numbers, non_blocking=True)
        return Step(
            number=state.global_step,
            epoch=float(state.epoch or 0.0),
            result=latest.result,
            learning_rate=latest.learning_rate,
            numbers=numbers,
            begun=self._begun,
            ended=Moment(device),
            captured=self.execution.captured(),
        )

    def _settle(self, step: Step) -> None:
        """Wait for a step, write it down and draw the consequences.

        Raises:
            UserError: its loss is no number.
        """
        step.ended.wait()
        loss, norm = step.numbers.tolist()
        if not math.isfinite(loss):
            raise self._no_number(step.number, loss)
        seconds = step.begun.seconds_until(step.ended)
        self._report(step, loss, norm if abs(norm) < float("inf") else None, seconds)
        self.execution.after_step(step.result, None if step.captured else seconds)

    def _no_number(self, step: int, loss: float) -> UserError:
        """What made a loss no number. Before anything was learned that is the base: its weights were numbers as they
        were read (``model.watched_weights``), so what they compute is too large for the format."""
        if step > 1:
            rate = self.job.plan.recipe_values().learning_rate / 4
            return UserError(f"step {step}: the loss is {loss}; training fell apart", f"--learning-rate {rate:g}")
        dtype = self.job.plan.execution_values().compute_dtype
        said = f"step 1: the loss is {loss} before anything was learned: the base model computes no number in {dtype}"
        wider = "bfloat16, or float32" if dtype == "float16" else "float32"
        return UserError(said, f"--compute-dtype {wider}" if dtype != "float32" else "another --model")

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

    def _evaluate(self, step: int) -> None:
        if not self.job.held_out:
            return
        start = time.perf_counter()
        self.job.log.phase("measuring the held-out rows")
        model = self.job.loaded.model
        model.eval()
        held_out = self.execution.evaluate(self.job.held_out)
        model.train()
        if self.job.best_checkpoint is not None:
            self.job.best_checkpoint.offer(model, step, held_out.loss)
        self.job.log.write(
            events.EvalEvent,
            step=step,
            loss=held_out.loss,
            rows=len(self.job.held_out),
            row_losses=held_out.row_losses,
            seconds=time.perf_counter() - start,
        )
