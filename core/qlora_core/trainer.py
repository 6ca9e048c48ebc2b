"""transformers' Trainer as the loop (schedule, clipping, resume, trackers), with our step inside it.

One batch of its data loader is all examples of one optimizer step; ``gradient_accumulation_steps`` is 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from qlora_core.backends.protocol import Backend, Loaded
from qlora_core.best import BestAdapter
from qlora_core.device import DeviceMemory
from qlora_core.events import EventLog
from qlora_core.guard import Guard
from qlora_core.reporter import Reporter
from qlora_core.room import OPTIMIZER_WAYS, drop_workspaces, keep_trying, patiently
from qlora_core.session.ranks import SINGLE, Ranks
from qlora_core.step.limits import Limits
from qlora_core.step.packing import Example
from qlora_core.step.runner import StepResult, StepRunner
from qlora_core.stop import StopRequest
from qlora_core.tally import Tally
from qlora_profiles import events
from qlora_profiles.plan import RunPlan

T = TypeVar("T")


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
    ranks: Ranks = SINGLE


class StepTrainer(Trainer):
    """A Trainer whose step is ``StepRunner``'s."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.last: StepResult | None = None
        self.last_grad_norm: Tensor | None = None
        self.last_learning_rate = 0.0
        super().__init__(
            model=job.loaded.model,
            args=training_arguments(job.plan, job.output),
            train_dataset=job.train,
            data_collator=_as_they_are,
            callbacks=[Reporter(self)],
        )
        self.remove_callback(PrinterCallback)
        self._trained = [parameter for parameter in job.loaded.model.parameters() if parameter.requires_grad]
        self._drop_gradients = dropping(self._trained)
        job.loaded.model.zero_grad = self._drop_gradients  # torch's own walks through every module of the model
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
            keep_trying(optimizer, self.args.device, self._make_room)
        return optimizer

    def clip_gradients(self) -> Tensor:
        """Clip as the recipe says; returns the norm before."""
        self.accelerator.unscale_gradients()

        def clip() -> Tensor:
            return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

        return patiently(clip, self.args.device, self._make_room, OPTIMIZER_WAYS)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.last_grad_norm = self.clip_gradients()
        return self.last_grad_norm

    def _make_room(self) -> bool:
        """Free what expanded weights or CUDA graphs hold, or else the workspaces of products; False where there are
        none."""
        after = self.runner.limits.less_held()
        if after is None:
            return drop_workspaces()
        self.runner.change("out of memory for the optimizer's step", after)
        self.guard.shrunk()
        self.tally.adapted = True
        return True

    def with_room(self, work: Callable[[], T], ways: str) -> T:
        """Do something beside the steps. CUDA graphs, then expanded weights make room for it where they must, and are
        made again after.

        Raises:
            EnvironmentProblem: memory runs out all the same; ``ways`` are what helps.
        """
        return patiently(work, self.args.device, lambda: self._release_held() or drop_workspaces(), ways)

    def _release_held(self) -> bool:
        release = getattr(self.scorer, "release", None)
        return bool(release and release())

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
            drop_gradients=self._drop_gradients,
            limits=Limits.of(execution),
            num_layers=job.backend.num_layers(job.loaded),
            device=self.args.device,
            pin_memory=execution.pin_memory,
            on_change=self._adapt,
            total_supervised=job.ranks.total,
            can_rebuild=execution.adapter_kernel == "fused" and execution.layer_kernels == "liger",
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
        if not model.training:
            model.train()
        self.last_learning_rate = self._get_learning_rate()
        was = self.runner.limits
        self.last = self.runner.run(inputs["examples"])
        if self.runner.limits != was:
            self.guard.shrunk()
            self.tally.adapted = True
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

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the inputs are no tensors."""
        return 0


def dropping(parameters: Sequence[Tensor]) -> Callable[..., None]:
    """What forgets the gradients of some parameters."""

    def drop(set_to_none: bool = True) -> None:
        for parameter in parameters:
            parameter.grad = None

    return drop


def _as_they_are(examples: list[Example]) -> dict[str, list[Example]]:
    """The collator: cutting and packing belong to the step."""
    return {"examples": examples}


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
        logging_strategy="steps" if run.report_to else "no",  # it waits for the device
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        report_to=list(run.report_to) or "none",
        run_name=run.run_name,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
