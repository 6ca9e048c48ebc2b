"""Steps measured on one H200: our own loop, one micro-batch each, torch 2.11, rank 16.

``segments`` of the allocator are growing or fixed, ``dequantized`` is how many percent of the layers kept their weights
dequantized. ``kernels`` are "plain" (the model's own layers, PEFT's adapters, keys expanded to all heads), "adapters"
(adapters inside the products, shared key heads), "fused" (Liger's layers, too; adapters of 8-bit bases stay PEFT's),
"own" (norms and SwiGLU are ours), "graphs" and "own graphs" (the same in one CUDA graph), "rematerialized" (with cheap
results made again and layers' inputs in main memory), "eager" (fused, with attention that caps its scores) or "unsloth"
(Unsloth's kernels and adapters).
"""

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from qlora_profiles.facts import ModelFacts
from qlora_profiles.hardware import Gpu
from qlora_run.model_facts import known_configs
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.summary import summarise
from qlora_run.planner.cost.inputs import CostInputs

H200 = Gpu(name="NVIDIA H200", capability=(9, 0), vram_total_bytes=141 * 2**30, vram_free_bytes=140 * 2**30)
SHARES = {"all": 1.0, "half": 0.5, "none": 0.0}
HUB_NAMES = {
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "llama3.1-8b": "meta-llama/Llama-3.1-8B",
    "gemma3-4b-text": "google/gemma-3-4b-it",
}


class Point(NamedTuple):
    """One step: memory in MiB (by torch, and by the driver), time in ms."""

    model: str
    method: str
    kernels: str
    tokens: int
    recomputed: str
    kernel: str
    allocated_mib: int
    reserved_mib: int
    driver_mib: int
    step_ms: int
    segments: str
    dequantized: int

    @property
    def graphs(self) -> bool:
        """Whether CUDA graphs computed it, which hold all that a micro-batch takes."""
        return self.kernels.endswith("graphs")

    def setup(self, usual: CostInputs) -> CostInputs:
        """``usual`` with the kernels that computed this step."""
        eager = self.kernels == "eager"
        return replace(
            usual,
            method=self.method,
            loss_kernel=self.kernel,
            attention="sdpa" if eager else usual.attention,
            fused_kernels=self.kernels not in ("plain", "adapters"),
            fused_adapters=self.kernels not in ("plain", "unsloth") and self.method != "qlora-8",
            backend_kernels=self.kernels == "unsloth",
            expands_heads=self.kernels in ("plain", "eager"),
            cuda_graphs=self.graphs,
            rematerialize_activations=self.kernels == "rematerialized",
            offload_activations=self.kernels == "rematerialized",
            expandable_segments=self.segments == "growing",
        )

    def layers_recomputed(self, total: int) -> int:
        """How many of a model's layers that is."""
        return round(SHARES[self.recomputed] * total)

    def layers_dequantized(self, total: int) -> int:
        """How many of them kept their weights dequantized."""
        return round(self.dequantized / 100 * total)


@cache
def points() -> tuple[Point, ...]:
    """All of them."""
    text = Path(__file__).with_name("measured_h200.csv").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {name: int(value) if value.isdecimal() else value for name, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]
    return tuple(Point(**row) for row in rows)


@cache
def facts_of(model: str) -> ModelFacts:
    """The text part of a measured model."""
    if model not in HUB_NAMES:
        read = json.loads(Path(__file__).with_name("measured_models.json").read_text(encoding="utf-8"))
        return msgspec.convert(read[model], ModelFacts)
    name = HUB_NAMES[model]
    config = known_configs()[name]
    return summarise(name, config, tensors_from_config(config, name), exact=True, fingerprint="")
