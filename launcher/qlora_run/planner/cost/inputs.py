"""The cost inputs: the few settings that decide how much memory and time a micro-batch takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_core.execution.rungs import planned
from qlora_profiles.settings import Execution, Recipe, values_of

FUSED_BACKENDS = ("unsloth",)
"""Backends with kernels of their own for norms, activations and adapters, which keep their inputs only."""

GROUPING_TORCH = (2, 11)
"""From here on torch's packed kernel lets queries share key heads; before, they are expanded to all heads."""

OF_BACKEND = ("method", "fused_kernels", "fused_adapters", "expands_heads", "backend_kernels")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostInputs:
    """Everything but the tokens of a micro-batch and the layers recomputed."""

    method: str
    double_quant: bool
    lora_r: int
    lora_dropout: float
    optimizer: str
    device: str
    compute_dtype: str
    attention: str
    loss_kernel: str
    loss_chunk_tokens: int
    optimizer_kernel: str
    expandable_segments: bool
    offload_activations: bool
    cuda_graphs: bool
    fused_kernels: bool
    fused_adapters: bool
    expands_heads: bool
    rematerialize_activations: bool = False
    backend_kernels: bool = False

    @classmethod
    def of(cls, recipe: Recipe, execution: Execution, torch: tuple[int, ...] | None = None) -> "CostInputs":
        """The part of a plan that counts; ``torch`` is its version, where it is known."""
        values: dict[str, Any] = values_of(recipe) | values_of(execution)
        return cls.from_values(values.__getitem__, recipe.method, torch)

    @classmethod
    def from_values(
        cls, value: Callable[[str], Any], method: str, torch: tuple[int, ...] | None = None
    ) -> "CostInputs":
        """From settings by name, with the method put in."""
        values: dict[str, Any] = {name: value(name) for name in cls.__slots__ if name not in OF_BACKEND}
        old = torch is not None and torch < GROUPING_TORCH
        return cls(
            method=method,
            expands_heads=values["attention"] == "sdpa" or (values["attention"] == "varlen" and old),
            backend_kernels=value("backend") in FUSED_BACKENDS,
            **values | fused_parts(value, method),
        )

    def can(self, name: str) -> bool:
        """Whether the kernels are such that a searched setting can be used.

        Raises:
            KeyError: ``name`` is no searched setting.
        """
        return all(getattr(self, need) for need in planned(name).needs)

    @property
    def can_rematerialize(self) -> bool:
        """Whether something says how norms' and activations' results are made again, and something asks."""
        return self.can("rematerialize_activations")

    @property
    def can_stay_dequantized(self) -> bool:
        """Whether weights are dequantized by what can let them stay so."""
        return self.can("layers_dequantized")

    @property
    def four_bit(self) -> bool:
        """True where the base is kept in 4 bits."""
        return self.method == "qlora-4"

    @property
    def compute_bytes(self) -> int:
        """Bytes of a value in the arithmetic."""
        return 4 if self.compute_dtype == "float32" else 2

    @property
    def stream_bytes(self) -> int:
        """Bytes of a value between layers: a trained embedding is float32, and so is all that is added to it."""
        return 4 if self.full else self.compute_bytes

    @property
    def quantised(self) -> bool:
        """True where the base is kept in 4 or 8 bits and dequantized for each product."""
        return self.method in ("qlora-4", "qlora-8")

    @property
    def full(self) -> bool:
        """True where the whole model is trained and there is no adapter."""
        return self.method == "full"


def fused_parts(value: Callable[[str], Any], method: str) -> dict[str, bool]:
    """What is fused, as a ``CostInputs`` names it, from settings by name."""
    adapters = value("adapter_kernel") == "fused" and method in ("qlora-4", "lora") and not value("lora_dropout")
    return {
        "fused_kernels": value("backend") in FUSED_BACKENDS or value("layer_kernels") == "liger",
        "fused_adapters": adapters,
    }


def unmet(name: str, value: Callable[[str], Any], method: str) -> str | None:
    """What a searched setting needs of the kernels, in words, where that is not there."""
    there = {"four_bit": method == "qlora-4", **fused_parts(value, method)}
    needs = planned(name).needs
    return None if all(there[need] for need in needs) else " and ".join(needs.values())
