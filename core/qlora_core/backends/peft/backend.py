"""The plain backend: transformers and PEFT as they are, on any device."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qlora_core.backends.model_kernels import Fused, full_length, graphed, use_kernels
from qlora_core.backends.packed_loss import PackedLoss, causal_lm, packed_loss
from qlora_core.backends.protocol import Loaded
from qlora_core.execution.limits import Limits
from qlora_core.kernels.attention import implementation
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.model.loading import load_base
from qlora_core.model.parts import drops, family_of, text_decoder
from qlora_profiles.errors import UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution, Recipe

if TYPE_CHECKING:
    from qlora_core.kernels.keyed_dropout import Places


class PeftBackend:
    """Loads with transformers, adapts with PEFT, computes the loss through ``packed_loss``."""

    name = "peft"

    def __init__(self) -> None:
        self._plan: RunPlan | None = None
        self._loss: PackedLoss | None = None
        self._fused = Fused()
        self._places: Places | None = None
        self._warn: Callable[[str], None] = lambda message: None

    def supported(self, report: HardwareReport) -> str | None:
        """It runs everywhere that torch runs."""
        return None

    def prepare(self, plan: RunPlan) -> None:
        """Nothing: the libraries are used as they are."""

    def load(self, plan: RunPlan, warn: Callable[[str], None]) -> Loaded:
        """Load the base, freeze it and put float32 adapters on; the whole model is trained for ``full``.

        Raises:
            UserError: the base cannot be loaded, or has no layer that the recipe names.
            EnvironmentProblem: a package that the plan names is missing.
        """
        self._plan, self._warn = plan, warn
        recipe, execution, run = plan.recipe_values(), plan.execution_values(), plan.run_values()
        config = _config(recipe, plan)
        model = load_base(recipe, execution, run, implementation(execution.attention, config), warn)
        model.config.use_cache = False
        if recipe.method != "full":
            model = add_adapters(model, recipe)
        if recipe.method != "full" and recipe.lora_dropout > 0:
            self._places = _keyed(model, recipe, execution, warn)
        self._fused = use_kernels(model, execution, warn)
        return Loaded(model=model)

    def num_layers(self, loaded: Loaded) -> int:
        """Decoder layers of the loaded model."""
        return len(decoder_layers(loaded.model))

    def apply(self, loaded: Loaded, limits: Limits) -> PackedLoss:
        """Set what each layer keeps and hand out the loss with the plan's kernels; graphs are of what is set."""
        assert self._plan is not None
        inner = causal_lm(loaded.model)
        eager = not limits.cuda_graphs  # in a graph the host does nothing in either case
        preserve = drops(inner.config)  # adapters draw by place, which is the same when a layer is computed again
        recompute_layers(inner, limits.layers_recomputed, preserve, limits.offload_activations, lighter=eager)
        self._fused.layers.rematerialize = limits.rematerialize_activations
        if self._fused.adapters is not None:
            self._fused.adapters.keep_dequantized(decoder_layers(inner)[: limits.layers_dequantized])
        if self._loss is None:
            self._loss = self._make_loss(loaded)
        decode = graphed(self._loss, limits, self._warn)
        return replace(self._loss, chunk_tokens=limits.loss_chunk_tokens, decode=decode)

    def _make_loss(self, loaded: Loaded) -> PackedLoss:
        import torch

        assert self._plan is not None
        execution = self._plan.execution_values()
        dtype = None if execution.compute_dtype == "float32" else getattr(torch, execution.compute_dtype)
        return packed_loss(
            loaded.model,
            attention=execution.attention,
            kernel=execution.loss_kernel,
            chunk_tokens=execution.loss_chunk_tokens,
            autocast_dtype=dtype,
            full_length=full_length(self._plan, loaded.model, self._warn),
            places=self._places,
            release_weights=self._fused.adapters.release if self._fused.adapters is not None else None,
            warn=self._warn,
        )


def _keyed(model: Any, recipe: Recipe, execution: Execution, warn: Callable[[str], None]) -> "Places":
    """Adapters that drop the same values however a step is cut."""
    import torch

    from qlora_core.kernels.keyed_dropout import key_dropout

    return key_dropout(model, recipe.seed, torch.device(execution.device), warn)


def _config(recipe: Recipe, plan: RunPlan) -> Any:
    from transformers import AutoConfig

    from qlora_core.model.loading import explained, hub_arguments, local_model

    run = plan.run_values()
    source = local_model(recipe, run)
    with explained(source):
        return AutoConfig.from_pretrained(source, **hub_arguments(recipe, run, source)).get_text_config()


def add_adapters(model: Any, recipe: Recipe) -> Any:
    """LoRA in float32 on the recipe's target modules, all zero so far; everything else is frozen.

    PEFT would draw first values in main memory and move them layer by layer; ``lora_init.initialise`` sets others.

    Raises:
        UserError: no layer has such a name; lists those that exist.
    """
    from peft import LoraConfig, get_peft_model

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=target_names(recipe, model),
        use_rslora=recipe.use_rslora,
        bias="none",
    )
    try:
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError(f"target_modules: {error}", "--target-modules all-linear") from error
    from peft.tuners.lora import LoraLayer

    for layer in (module for module in adapted.modules() if isinstance(module, LoraLayer)):
        _materialise(layer)
        _leave_inputs_alone(layer)
    return adapted


def _materialise(layer: Any) -> None:
    """Make an adapter where its base layer is: zeros, or PEFT's own first values in an embedding's."""
    import torch

    device = next(layer.get_base_layer().parameters()).device  # experts have no ``weight``
    with torch.no_grad():
        for part in (layer.lora_A, layer.lora_B, layer.lora_embedding_A, layer.lora_embedding_B):
            for parameter in part.to_empty(device=device).parameters():
                parameter.zero_()
    for adapter in layer.lora_embedding_A:
        layer.reset_lora_parameters(adapter, True)


def _leave_inputs_alone(layer: Any) -> None:
    """Autocast gives an adapter its input in the compute dtype; PEFT's own cast to float32 would only be undone.

    Without autocast (float32 arithmetic) there is nothing to cast.
    """
    layer.cast_input_dtype_enabled = False


def target_names(recipe: Recipe, model: Any) -> str | list[str]:
    """PEFT's form of the target modules. All linear layers of a mixture of experts are those that every token meets;
    layers that the family leaves alone are none of them."""
    import torch

    names = list(recipe.target_modules)
    if names != ["all-linear"]:
        return names
    decoder, family = text_decoder(model), family_of(model)
    mixture = any(".experts." in name for name, _ in decoder.named_parameters())
    if not mixture and not family.left_alone:
        return "all-linear"
    others = (*family.left_alone, *(family.never_adapted if mixture else ()))
    linear = {
        name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)
    }
    return sorted(linear.difference(others))
