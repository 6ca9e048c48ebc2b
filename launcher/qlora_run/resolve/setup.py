"""The few settings that decide how much memory and time a micro-batch takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qlora_profiles.settings import Execution, Recipe, values_of

FUSED_BACKENDS = ("unsloth",)
"""Backends with kernels of their own for norms, activations and adapters, which keep their inputs only."""

GROUPING_TORCH = (2, 11)
"""From here on torch's packed kernel lets queries share key heads; before, they are expanded to all heads."""

OF_BACKEND = ("method", "fused_kernels", "fused_adapters", "expands_heads", "backend_kernels")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
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
    rebuild_activations: bool = False
    backend_kernels: bool = False

    @classmethod
    def of(cls, recipe: Recipe, execution: Execution, torch: tuple[int, ...] | None = None) -> "Setup":
        """The part of a plan that counts; ``torch`` is its version, where it is known."""
        values: dict[str, Any] = values_of(recipe) | values_of(execution)
        return cls.from_values(values.__getitem__, recipe.method, torch)

    @classmethod
    def from_values(cls, value: Callable[[str], Any], method: str, torch: tuple[int, ...] | None = None) -> "Setup":
        """From settings by name, with the method put in."""
        values = {name: value(name) for name in cls.__slots__ if name not in OF_BACKEND}
        old = torch is not None and torch < GROUPING_TORCH
        backend_kernels = value("backend") in FUSED_BACKENDS
        return cls(
            method=method,
            fused_kernels=backend_kernels or value("layer_kernels") == "liger",
            fused_adapters=value("adapter_kernel") == "fused"
            and method in ("qlora-4", "lora")
            and not values["lora_dropout"],
            expands_heads=values["attention"] == "sdpa" or (values["attention"] == "varlen" and old),
            backend_kernels=backend_kernels,
            **values,
        )

    @property
    def can_rebuild(self) -> bool:
        """Whether something says how norms' and activations' results are made, and something asks."""
        return self.fused_kernels and self.fused_adapters

    @property
    def can_expand(self) -> bool:
        """Whether weights are expanded by what can let them stay so."""
        return self.fused_adapters and self.method == "qlora-4"

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
        """True where the base is kept in 4 or 8 bits and expanded for each product."""
        return self.method in ("qlora-4", "qlora-8")

    @property
    def full(self) -> bool:
        """True where the whole model is trained and there is no adapter."""
        return self.method == "full"
