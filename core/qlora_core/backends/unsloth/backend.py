"""Unsloth as a backend: its decoder and adapter kernels under our step, without its trainer.

It is an optional package of its own licence; nothing of it is copied here. Only its forward down to the last
hidden states is used: cutting, packing, checkpointing flags, loss, optimizer, checkpoints and artifacts are ours.
Importing it changes transformers and TRL for the whole process, so a process has one backend.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qlora_core.backends.packed_loss import PackedLoss, causal_lm, decoder_of
from qlora_core.backends.protocol import Loaded
from qlora_core.backends.unsloth.requirements import PROJECTIONS, missing, unfit
from qlora_core.execution.limits import Limits
from qlora_core.kernels.cross_entropy import head_of, usable_kernel
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.model.loading import explained, hub_arguments, local_model
from qlora_core.model.packing import Packed
from qlora_core.model.watched_weights import watched_weights
from qlora_core.model.whole_weights import check_names
from qlora_core.session.ranks import SINGLE
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.places import cache_folder
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Recipe

FIX = "--backend peft"
FLAGS = {
    "UNSLOTH_DISABLE_STATISTICS": "1",  # else each load asks the hub
    "UNSLOTH_FUSED_FORWARD": "0",  # else every other model of this process answers with empty logits
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnslothLoss(PackedLoss):
    """Our loss on Unsloth's hidden states.

    ``checkpointing`` is each decoder layer with its flag: generating answers sets all of them anew.
    """

    checkpointing: tuple[tuple[Any, bool], ...]

    def hidden_states(self, packed: Packed) -> Tensor:
        """What Unsloth's decoder makes of a micro-batch (T x H)."""
        for layer, wanted in self.checkpointing:
            if layer.gradient_checkpointing != wanted:
                layer.gradient_checkpointing = wanted
        states: Tensor = decoder_of(self.model)(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            packed_seq_lengths=torch.tensor(packed.lengths, dtype=torch.int32),  # a new one: it is cached by identity
            use_cache=False,
        ).last_hidden_state[0]
        return states


class UnslothBackend:
    """Loads and adapts with Unsloth, computes the loss of its hidden states with our kernels."""

    name = "unsloth"

    def __init__(self) -> None:
        self._plan: RunPlan | None = None
        self._warn: Callable[[str], None] = lambda message: None
        self._loss: UnslothLoss | None = None

    def supported(self, report: HardwareReport) -> str | None:
        """The first of its needs that this machine does not meet."""
        return missing(report)

    def prepare(self, plan: RunPlan) -> None:
        """Import Unsloth, which must come before transformers.

        Raises:
            EnvironmentProblem: it cannot be imported.
        """
        os.environ.update(FLAGS)
        os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(cache_folder("unsloth")))
        try:
            import unsloth  # noqa: F401
        except Exception as error:  # its import probes cards, compilers and kernels: anything may come out
            raise EnvironmentProblem(f"unsloth cannot be imported: {type(error).__name__}: {error}", FIX) from error

    def load(self, plan: RunPlan, warn: Callable[[str], None]) -> Loaded:
        """Load the base and put adapters on.

        Raises:
            UserError: the model or the recipe is not for Unsloth.
            EnvironmentProblem: what it loaded is not the model as it is.
        """
        self._plan, self._warn = plan, warn
        check_fit(plan)
        model = _adapted(_base(plan), plan.recipe_values())
        model.config.use_cache = False
        return Loaded(model=model)

    def num_layers(self, loaded: Loaded) -> int:
        """Decoder layers of the loaded model."""
        return len(decoder_layers(loaded.model))

    def apply(self, loaded: Loaded, limits: Limits) -> UnslothLoss:
        """Set each layer's checkpointing flag and hand out the loss with the plan's loss kernel."""
        inner = causal_lm(loaded.model)
        recompute_layers(
            inner,
            limits.layers_recomputed,
            preserve_rng_state=False,
            offload=limits.offload_activations,
            input_gradients=True,  # as its own kernels are used to
            lighter=False,  # its layers do more in a checkpoint than to compute
        )
        if self._loss is None:
            self._loss = self._make_loss(loaded)
        flags = tuple((layer, bool(layer.gradient_checkpointing)) for layer in decoder_layers(inner))
        return replace(self._loss, chunk_tokens=limits.loss_chunk_tokens, checkpointing=flags)

    def _make_loss(self, loaded: Loaded) -> UnslothLoss:
        assert self._plan is not None
        execution, head = self._plan.execution_values(), head_of(loaded.model)
        assert head is not None  # true of every architecture that check_fit lets pass
        return UnslothLoss(
            model=loaded.model,
            head=head,
            attention=execution.attention,
            kernel=usable_kernel(execution.loss_kernel, head, self._warn),
            chunk_tokens=execution.loss_chunk_tokens,
            autocast_dtype=getattr(torch, execution.compute_dtype),
            checkpointing=(),
        )


def check_fit(plan: RunPlan) -> None:
    """Raise UserError for a model or a recipe that is not for Unsloth."""
    values = {name: resolved.value for name, resolved in (plan.recipe | plan.execution).items()}
    reason = unfit(plan.model.model_type, values, values["target_modules"])
    if reason is not None:
        raise UserError(f"backend unsloth: {reason}", FIX)


def _base(plan: RunPlan) -> Any:
    """The base as Unsloth loads it.

    Raises:
        UserError: weights are missing, left over, or no numbers.
        EnvironmentProblem: it changed it: another vocabulary, as for some tokenizers without padding, or format.
    """
    from transformers import AutoConfig
    from unsloth import FastLanguageModel

    recipe, execution, run = plan.recipe_values(), plan.execution_values(), plan.run_values()
    source = local_model(recipe, run)
    arguments = hub_arguments(recipe, run, source)
    with explained(source), watched_weights() as weights:
        config = AutoConfig.from_pretrained(source, **arguments)
        check_names(source, arguments)
        model, _ = FastLanguageModel.from_pretrained(
            source,
            max_seq_length=min(recipe.max_length, config.max_position_embeddings),
            dtype=getattr(torch, execution.compute_dtype),
            load_in_4bit=recipe.method == "qlora-4",
            device_map={"": SINGLE.place(execution.device)},
            use_gradient_checkpointing=False,  # the flags are set by apply
            use_exact_model_name=True,  # else it may take another upload of the same model
            **arguments,
        )
    weights.check(source, model, getattr(torch, execution.compute_dtype))
    _check_untouched(model, config.get_text_config().vocab_size, execution.compute_dtype)
    return model


def _check_untouched(model: Any, vocab_size: int, dtype: str) -> None:
    """Raise EnvironmentProblem where the embedding has other rows or another format than asked for."""
    weight = model.get_input_embeddings().weight
    if weight.shape[0] != vocab_size:
        raise EnvironmentProblem(f"unsloth changed the vocabulary from {vocab_size} to {weight.shape[0]} rows", FIX)
    if weight.dtype != getattr(torch, dtype):
        raise EnvironmentProblem(f"unsloth loaded the model as {weight.dtype} instead of {dtype}", FIX)


def _adapted(model: Any, recipe: Recipe) -> Any:
    """LoRA as Unsloth puts it on; its values are set by whoever asked for the model."""
    from unsloth import FastLanguageModel

    names = list(recipe.target_modules)
    return FastLanguageModel.get_peft_model(
        model,
        r=recipe.lora_r,
        target_modules=list(PROJECTIONS) if names == ["all-linear"] else names,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=0,
        bias="none",
        use_rslora=recipe.use_rslora,
        use_gradient_checkpointing=False,
        random_state=recipe.seed,
    )
