"""The kernels that a plan names, put into a loaded transformers model. What is learned stays as it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qlora_core.backends.packed_loss import PackedLoss, causal_lm, decoder_of
from qlora_core.execution.limits import Limits
from qlora_core.kernels import batched_attention
from qlora_core.kernels.attention import end_to_end
from qlora_core.kernels.dequantize import Dequantize, dequantized_weight, triton_dequantize
from qlora_core.kernels.fused_lora import FusedAdapters, fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import FusedLayers, fuse_layers, layer_kernels
from qlora_core.kernels.trial import attempt
from qlora_core.memory.cuda_graphs import GraphedDecoder
from qlora_core.model.packing import Packed
from qlora_core.session.fallback import Warn
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution


@dataclass(slots=True)
class Fused:
    """What was put into a model: its layers' kernels, and its adapters' where they are fused."""

    layers: FusedLayers = field(default_factory=FusedLayers)
    adapters: FusedAdapters | None = None


def use_kernels(model: Any, execution: Execution, warn: Warn) -> Fused:
    """Replace the forward of those modules that the plan's kernels compute.

    Raises:
        EnvironmentProblem: a package that the plan names is missing.
    """
    dtype, fused = getattr(torch, execution.compute_dtype), Fused()
    if execution.adapter_kernel == "fused":
        fused.adapters = fuse_adapters(model, decoder_of(model), dtype, _dequantize_kernel(execution, dtype, warn))
    if execution.layer_kernels != "liger":
        return fused
    try:
        kernels = layer_kernels()
    except ImportError as error:
        raise EnvironmentProblem(f"layer_kernels liger: {error}", "--layer-kernels plain") from error
    fused.layers = fuse_layers(causal_lm(model), kernels, dtype, warn)
    return fused


def _dequantize_kernel(execution: Execution, dtype: torch.dtype, warn: Warn) -> Dequantize:
    """What dequantizes 4-bit weights; bitsandbytes where the plan's kernel fails."""
    plain: Dequantize = dequantized_weight
    if execution.dequantize_kernel != "triton":
        return plain
    return attempt(
        "4-bit weights (triton)",
        lambda: triton_dequantize(torch.device(execution.device), dtype),
        plain,
        instead="bitsandbytes",
        warn=warn,
    )


def full_length(plan: RunPlan, model: Any, warn: Warn) -> int | None:
    """What examples are cut at (tokens), where rows of one length can come and have a faster attention."""
    length = plan.recipe_values().max_length
    longest = min(length, plan.data.longest_tokens)
    if plan.execution_values().attention != "varlen" or not batched_attention.worth(longest, length):
        return None
    config, device = model.config.get_text_config(), model.get_input_embeddings().weight.device
    return length if batched_attention.usable(config, device, end_to_end, warn) else None


def graphed(loss_function: PackedLoss, limits: Limits, warn: Warn) -> GraphedDecoder | None:
    """Graphs of the decoder as it computes now, or ``None`` where there are to be none or the model has none."""
    if not limits.cuda_graphs or loss_function.head is None or limits.offload_activations:
        return None
    trained = [parameter for parameter in loss_function.model.parameters() if parameter.requires_grad]
    return GraphedDecoder(_uncached(loss_function), trained, limits.token_budget, warn)


def _uncached(loss_function: PackedLoss) -> Callable[[Packed], Tensor]:
    """The decoder without autocast's cache: a copy made before a capture would never be made again."""

    def decode(packed: Packed) -> Tensor:
        with torch.autocast(
            packed.input_ids.device.type,
            loss_function.autocast_dtype,
            enabled=loss_function.autocast_dtype is not None,
            cache_enabled=False,
        ):
            return loss_function.hidden_states(packed)

    return decode
