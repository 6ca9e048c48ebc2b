"""transformers' Trainer as the loop (schedule, clipping, resume, trackers), with our step inside it.

One batch of its data loader is all examples of one optimizer step; ``gradient_accumulation_steps`` is 1.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from qlora_core.backends.protocol import Backend, Loaded
from qlora_core.best import BestAdapter
from qlora_core.checkpoints import mark_complete
from qlora_core.device import DeviceMemory
from qlora_core.evaluate import evaluate
from qlora_core.events import EventLog
from qlora_core.guard import Guard
from qlora_core.optimizer_step import keep_trying
from qlora_core.step.limits import Limits
from qlora_core.step.packing import Example
from qlora_core.step.runner import StepResult, StepRunner
from qlora_core.stop import StopRequest
from qlora_core.tally import Tally
from qlora_profiles import events
from qlora_profiles.errors import UserError
from qlora_profiles.plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that a run of the trainer stands on."""

    plan: RunPlan
    backend: Backend
    loaded: Loaded
    train: Sequence[Example]
    held_out: Sequence[Example]
    log: EventLog
    stop: StopRequest
    memory: DeviceMemory
    output: Path
    best: BestAdapter | None = None


class StepTrainer(Trainer):
    """A Trainer whose step is ``StepRunner``'s."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.last: StepResult | None = None
        self.last_grad_norm: float | None = None
        self.last_learning_rate = 0.0
        super().__init__(
            model=job.loaded.model,
            args=training_arguments(job.plan, job.output),
            train_dataset=job.train,
            data_collator=_as_they_are,
            callbacks=[Reporter(self)],
        )
        self.remove_callback(PrinterCallback)
        self.guard = Guard()
        self.tally = Tally()
        self._captures = 0
        self.runner = self._make_runner()
        self.most = self.runner.limits

    def start_from(self, cause: str, limits: Limits) -> None:
        """Compute within other limits than the plan's from here on, and never grow beyond them."""
        self.runner.change(cause, limits)
        self.most = limits

    def create_optimizer(self, model: Any = None) -> Any:
        """transformers' choice, which tries again where a step finds no room for its state."""
        optimizer = super().create_optimizer(model)
        if isinstance(optimizer, torch.optim.AdamW):
            keep_trying(optimizer, self.args.device, self._give_up_graphs)
        return optimizer

    def _give_up_graphs(self) -> bool:
        """Free the memory that CUDA graphs hold; False where there are none."""
        limits = self.runner.limits
        if limits.cuda_graphs:
            self.runner.change("out of memory for the optimizer's state", replace(limits, cuda_graphs=False))
            self.guard.shrunk()
            self.tally.adapted = True
        return limits.cuda_graphs

    def captured(self) -> bool:
        """Whether graphs were captured since the last call: such a step's time says nothing of the others."""
        before, self._captures = self._captures, getattr(self.scorer, "captures", 0)
        return self._captures != before

    def _make_runner(self) -> StepRunner:
        job, execution = self.job, self.job.plan.execution_values()
        self.scorer = job.backend.apply(job.loaded, Limits.of(execution))
        return StepRunner(
            loss_sum=self.scorer,
            backward=self.accelerator.backward,
            drop_gradients=lambda: job.loaded.model.zero_grad(set_to_none=True),
            limits=Limits.of(execution),
            num_layers=job.backend.num_layers(job.loaded),
            device=self.args.device,
            pin_memory=execution.pin_memory,
            on_change=self._adapt,
        )

    def _adapt(self, cause: str, before: Limits, after: Limits) -> None:
        """Apply what the runner decided, and write it down."""
        self.scorer = self.runner.loss_sum = self.job.backend.apply(self.job.loaded, after)
        changed = [f.name for f in fields(Limits) if getattr(before, f.name) != getattr(after, f.name)]
        self.job.log.write(
            events.AdaptationEvent,
            step=self.state.global_step + 1,
            cause=cause,
            before={name: getattr(before, name) for name in changed},
            after={name: getattr(after, name) for name in changed},
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The gradient of one whole optimizer step; returns its loss per supervised token."""
        model.train()
        self.last_learning_rate = self._get_learning_rate()
        was = self.runner.limits
        self.last = self.runner.run(inputs["examples"])
        if self.runner.limits != was:
            self.guard.shrunk()
            self.tally.adapted = True
        if not torch.isfinite(self.last.loss):
            raise UserError(
                f"step {self.state.global_step + 1}: the loss is {float(self.last.loss)}; training fell apart",
                f"--learning-rate {self.args.learning_rate / 4:g}",
            )
        return self.last.loss

    def say_measured(self) -> None:
        """Write down what the run held and took, where it computed in one way throughout."""
        reserved = self.job.memory.reserved_peak_bytes()
        if reserved is None or self.tally.adapted or not self.tally.step_seconds:
            return
        self.job.log.write(
            events.MeasuredEvent,
            stage="run",
            limits=asdict(self.runner.limits),
            largest_tokens=self.tally.largest_tokens,
            several_micro_batches=self.tally.several_micro_batches,
            reserved_bytes=reserved,
            outside_bytes=self.job.memory.outside_now_bytes(),
            step_tokens=mean(self.tally.step_tokens),
            step_seconds=mean(self.tally.step_seconds),
        )

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        self.last_grad_norm = float(norm) if norm is not None and math.isfinite(norm) else None
        return norm

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the inputs are no tensors."""
        return 0


def _as_they_are(examples: list[Example]) -> dict[str, list[Example]]:
    """The collator: cutting and packing belong to the step."""
    return {"examples": examples}


class Reporter(TrainerCallback):
    """Writes the events, measures the held-out rows, marks checkpoints and obeys a stop."""

    def __init__(self, trainer: StepTrainer) -> None:
        self.trainer = trainer
        self.started = 0.0

    @property
    def job(self) -> Job:
        """What the trainer stands on."""
        return self.trainer.job

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Held-out loss before the first step; a resumed run has it already."""
        if state.global_step == 0:
            self._evaluate(0)

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the step's clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step, measure on time, stop when asked."""
        seconds = time.perf_counter() - self.started
        self._report(state, seconds)
        assert self.trainer.last is not None
        usual_seconds = None if self.trainer.captured() else seconds
        self.trainer.tally.add(self.trainer.last, usual_seconds)
        self._watch(usual_seconds)
        run = self.job.plan.run_values()
        if state.global_step % run.eval_steps == 0 or state.global_step == state.max_steps:
            self._evaluate(state.global_step)
        if state.global_step == state.max_steps:
            control.should_save = True
        if self.job.stop:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint's files are all there: mark it."""
        folder = self.job.output / f"checkpoint-{state.global_step}"
        mark_complete(folder, state.global_step, self.job.plan.recipe_digest())
        self.job.log.write(events.CheckpointEvent, step=state.global_step, path=str(folder))

    def _report(self, state: Any, seconds: float) -> None:
        last = self.trainer.last
        assert last is not None
        self.job.log.write(
            events.StepEvent,
            step=state.global_step,
            loss=float(last.loss),
            learning_rate=self.trainer.last_learning_rate,
            grad_norm=self.trainer.last_grad_norm,
            supervised_tokens=last.supervised_tokens,
            tokens=last.tokens,
            examples=last.examples,
            micro_batches=last.micro_batches,
            step_seconds=seconds,
            epoch=float(state.epoch or 0.0),
            vram_peak_bytes=self.job.memory.peak_bytes(),
        )

    def _watch(self, seconds: float | None) -> None:
        """Shrink before memory spills silently; grow back when a smaller execution was too careful."""
        trainer, last = self.trainer, self.trainer.last
        assert last is not None
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
        held_out = evaluate(
            self.trainer.scorer,
            self.job.held_out,
            self.trainer.runner.limits.token_budget,
            self.trainer.args.device,
            execution.pin_memory,
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


OPTIMIZERS = {
    ("adamw", "fused"): "adamw_torch_fused",
    ("adamw", "plain"): "adamw_torch",
    ("adamw", "paged"): "paged_adamw_32bit",
    ("adamw-8bit", "fused"): "adamw_8bit",
    ("adamw-8bit", "plain"): "adamw_8bit",
    ("adamw-8bit", "paged"): "paged_adamw_8bit",
}
"""(the mathematics, its implementation) -> transformers' name."""


def training_arguments(plan: RunPlan, output: Path) -> TrainingArguments:
    """The plan in transformers' words."""
    recipe, execution, run = plan.recipe_values(), plan.execution_values(), plan.run_values()
    return TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=recipe.examples_per_step,
        gradient_accumulation_steps=1,
        num_train_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler,
        warmup_steps=recipe.warmup_ratio if recipe.warmup_steps is None else recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        optim=OPTIMIZERS[recipe.optimizer, execution.optimizer_kernel],
        seed=recipe.seed,
        data_seed=recipe.seed,
        use_cpu=execution.device == "cpu",
        fp16=execution.compute_dtype == "float16",
        dataloader_num_workers=execution.workers,
        dataloader_pin_memory=False,  # the step pins what it sends
        save_strategy="steps",
        save_steps=run.save_steps,
        save_total_limit=run.save_total_limit,
        eval_strategy="no",
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        report_to=list(run.report_to) or "none",
        run_name=run.run_name,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
