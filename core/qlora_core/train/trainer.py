"""transformers' Trainer as the loop (schedule, clipping, resume, trackers), with our step inside it.

One batch of its data loader is all examples of one optimizer step; ``gradient_accumulation_steps`` is 1.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, TrainerState

from qlora_core.execution.limits import Limits
from qlora_core.execution.rungs import usable_rungs
from qlora_core.model.packing import Example
from qlora_core.session.stop_signals import ignore_from_here
from qlora_core.train.checkpoints import unmark
from qlora_core.train.execution import RunningExecution
from qlora_core.train.job import Job
from qlora_core.train.reporter import Latest, Reporter
from qlora_profiles.plan import RunPlan
from qlora_profiles.run_folder import checkpoint_folder


class StepTrainer(Trainer):
    """A Trainer whose step is ``RunningExecution``'s."""

    def __init__(self, job: Job) -> None:
        self.job = job
        super().__init__(
            model=job.loaded.model,
            args=training_arguments(job.plan, job.output),
            train_dataset=job.train,
            data_collator=_as_they_are,
        )
        self.remove_callback(PrinterCallback)
        self._trained = [parameter for parameter in job.loaded.model.parameters() if parameter.requires_grad]
        self._drop_gradients = dropping(self._trained)
        job.loaded.model.zero_grad = self._drop_gradients  # torch's own walks through every module of the model
        self.latest = Latest()
        self.execution = self._make_execution()
        self.add_callback(Reporter(job, self.execution, self.latest))

    def get_train_dataloader(self) -> Any:
        """transformers' own, whose processes outlive a signal to the whole group: the step in hand needs them."""
        loader = super().get_train_dataloader()
        loader.worker_init_fn = partial(_begin_worker, loader.worker_init_fn)
        return loader

    def create_optimizer(self, model: Any = None) -> Any:
        """transformers' choice, which tries again where a step finds no room for its state."""
        optimizer = super().create_optimizer(model)
        if isinstance(optimizer, torch.optim.AdamW):
            self.execution.retry_optimizer_step(optimizer)
        return optimizer

    def clip_gradients(self) -> Tensor:
        """Clip as the recipe says; returns the norm before."""
        self.accelerator.unscale_gradients()

        def clip() -> Tensor:
            return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

        return self.execution.for_optimizer(clip)

    def _clip_grad_norm(self, model: Any) -> Tensor:
        self.latest.grad_norm = self.clip_gradients()
        return self.latest.grad_norm

    def _make_execution(self) -> RunningExecution:
        job, execution = self.job, self.job.plan.execution_values()
        return RunningExecution(
            limits=Limits.of(execution),
            apply=partial(job.backend.apply, job.loaded),
            num_layers=job.backend.num_layers(job.loaded),
            usable=usable_rungs(execution),
            backward=self.accelerator.backward,
            drop_gradients=self._drop_gradients,
            memory=job.memory,
            write=job.log.write,
            step_in_hand=lambda: self.state.global_step + 1,
            pin_memory=execution.pin_memory,
            total_supervised=job.ranks.total,
        )

    def train_from(self, checkpoint: Path | None) -> int:
        """Train what is left of the run; returns the steps done.

        A checkpoint of the last step is only read back: transformers' loop would take one step more.
        """
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)) if checkpoint else None
        if checkpoint is None or state is None or state.global_step < state.max_steps:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        else:
            self._load_from_checkpoint(str(checkpoint))
            self.state = state
        return self.state.global_step

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """transformers' own, over what an earlier process may have left there: that is no longer complete."""
        if self.job.ranks.writes:
            unmark(checkpoint_folder(self.job.output, self.state.global_step))
        super()._save_checkpoint(model, trial)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """The gradient of one whole optimizer step; returns its loss per supervised token."""
        self.latest.learning_rate = self._get_learning_rate()
        self.latest.result = self.execution.run(inputs["examples"])
        return self.latest.result.loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted: the inputs are no tensors."""
        return 0


def _begin_worker(first: Callable[[int], None] | None, number: int) -> None:
    ignore_from_here()
    if first is not None:
        first(number)


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
    """The plan as transformers' arguments. Raises KeyError for an optimizer without an entry in ``OPTIMIZERS``."""
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
        save_total_limit=None,  # transformers would delete older ones before the new one lasts: the reporter does it
        eval_strategy="no",
        logging_strategy="steps" if run.report_to else "no",  # it waits for the device
        logging_steps=run.logging_steps,
        logging_nan_inf_filter=False,
        report_to=list(run.report_to) or "none",
        run_name=run.run_name,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
