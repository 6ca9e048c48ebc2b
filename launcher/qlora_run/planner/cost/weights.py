"""What stays in memory through a run: the base, the adapter, its gradients and the optimizer's state."""

from collections.abc import Iterable, Sequence

from qlora_profiles.facts import LayerGroup, LinearShape, ModelFacts
from qlora_profiles.units import MIB
from qlora_run.planner.cost.inputs import CostInputs

SMALL_TENSOR_BYTES = MIB
"""Tensors up to this size share the allocator's small pages (``kSmallSize`` of torch's CUDACachingAllocator.cpp)."""


def weight_bits(inputs: CostInputs) -> int:
    """Bits of a weight of the base, as a person names them."""
    return {"qlora-4": 4, "qlora-8": 8, "full": 32}.get(inputs.method, 8 * inputs.compute_bytes)


def base_bytes(model: ModelFacts, inputs: CostInputs) -> int:
    """Bytes of all weights as they lie in memory: only the decoder's linear layers are quantised; experts are not."""
    inside = {"qlora-4": _bytes_4bit(inputs.double_quant), "qlora-8": 1.001, "full": 4.0}.get(inputs.method)
    outside = 4 if inputs.full else inputs.compute_bytes
    quantised = model.linear_params
    return round(quantised * (inside or outside) + (model.params - quantised) * outside)


def last_params(model: ModelFacts) -> int:
    """Values of all layers' last products."""
    return sum(
        group.count * shape.params
        for group in model.layers
        for shape in group.linears
        if shape.name.endswith("down_proj")
    )


def _bytes_4bit(double_quant: bool) -> float:
    """Half a byte and a scale for each 64 values: 8 bits (and one more scale for 256 of them), or float32."""
    return 0.5 + (1 / 64 + 4 / (64 * 256) if double_quant else 4 / 64)


def targets_in(group: LayerGroup, targets: Sequence[LinearShape]) -> list[LinearShape]:
    """Those of the targets that layers of this group have."""
    return [shape for shape in group.linears if shape in targets]


def adapter_params(model: ModelFacts, targets: Sequence[LinearShape], rank: int) -> int:
    """Values in a LoRA adapter: rank x (in + out) for each target of each layer."""
    return sum(group.count * _adapter_of_layer(group, targets, rank) for group in model.layers)


def _adapter_of_layer(group: LayerGroup, targets: Sequence[LinearShape], rank: int) -> int:
    return rank * sum(shape.in_features + shape.out_features for shape in targets_in(group, targets))


def trained_params(model: ModelFacts, targets: Sequence[LinearShape], inputs: CostInputs) -> int:
    """Values that the optimizer moves."""
    return model.params if inputs.full else adapter_params(model, targets, inputs.lora_r)


def state_bytes(trained: int, inputs: CostInputs) -> int:
    """Bytes of the adapter in float32 (a base trained whole counts as base) and of AdamW's two moments, 4 or 1 each."""
    return trained * ((0 if inputs.full else 4) + (2 if inputs.optimizer == "adamw-8bit" else 8))


def gradient_bytes(trained: int) -> int:
    """Bytes of ``trained`` values' gradients, in float32."""
    return trained * 4


def trained_in_layer(group: LayerGroup, targets: Sequence[LinearShape], inputs: CostInputs) -> int:
    """Values of trained weights in one layer: of the adapter, or all but norms and biases."""
    return group.params if inputs.full else _adapter_of_layer(group, targets, inputs.lora_r)


def small_bytes(model: ModelFacts, targets: Sequence[LinearShape], inputs: CostInputs) -> int:
    """The part of adapter and state that lies in small tensors."""
    if inputs.full:
        return 0
    small = sum(group.count * _small_in_layer(group, targets, inputs) for group in model.layers)
    return state_bytes(small, inputs) + gradient_bytes(small)


def _small_in_layer(group: LayerGroup, targets: Sequence[LinearShape], inputs: CostInputs) -> int:
    """Values of one layer's adapter that lie in small tensors."""
    mine = targets_in(group, targets)
    sizes = [inputs.lora_r * width for shape in mine for width in (shape.in_features, shape.out_features)]
    return sum(size for size in sizes if 4 * size <= SMALL_TENSOR_BYTES)


def cast_bytes(group: LayerGroup, targets: Sequence[LinearShape], inputs: CostInputs) -> int:
    """Copies of trained weights in one layer in the arithmetic's format, which backward needs again.

    Autocast makes them of float32 weights, fused adapters in any case.
    """
    if inputs.compute_bytes == 4 and not inputs.fused_adapters:
        return 0
    return inputs.compute_bytes * trained_in_layer(group, targets, inputs)


def dequantized_bytes(linears: Iterable[LinearShape], inputs: CostInputs, name: str = "") -> int:
    """Bytes of the widest weight (of those whose name ends so) dequantized for a product, with its scales in float32
    where they are quantised, too (one for each block of 64 values)."""
    if not inputs.quantised:
        return 0
    widest = max((shape.params for shape in linears if shape.name.endswith(name)), default=0)
    scales = widest // 16 if inputs.method == "qlora-4" and inputs.double_quant else 0
    return widest * inputs.compute_bytes + scales
