"""Plans written by hand, for tests of the core alone."""

import hashlib
from pathlib import Path
from typing import Any

from qlora_profiles.facts import DataFacts, LayerGroup, MemoryEstimate, ModelFacts, SourceFacts, TimeEstimate
from qlora_profiles.hardware import HardwareReport, Platform
from qlora_profiles.plan import Resolved, RunPlan
from qlora_profiles.registry import settings

EXECUTION: dict[str, Any] = {
    "device": "cpu",
    "backend": "peft",
    "compute_dtype": "float32",
    "vram_budget_bytes": None,
    "token_budget": 256,
    "layers_recomputed": 0,
    "attention": "sdpa",
    "loss_kernel": "chunked",
    "loss_chunk_tokens": 64,
    "optimizer_kernel": "plain",
    "adapter_kernel": "plain",
    "dequantize_kernel": "bitsandbytes",
    "layer_kernels": "plain",
    "cuda_graphs": False,
    "workers": 0,
    "dataset_workers": 0,
    "pin_memory": False,
    "expandable_segments": False,
    "cpu_threads": 1,
}

ON_CARD: dict[str, Any] = EXECUTION | {
    "device": "cuda",
    "compute_dtype": "bfloat16",
    "token_budget": 4096,
    "attention": "varlen",
    "loss_chunk_tokens": 256,
    "optimizer_kernel": "fused",
    "pin_memory": True,
    "expandable_segments": True,
    "cpu_threads": None,
}
"""How a card computes, with the model's own layers and PEFT's adapters."""


def plan(model: Path, data: Path, output: Path, steps: int = 6, **changes: Any) -> RunPlan:
    """A plan with every setting at its default, small where defaults are large, and ``changes``."""
    values: dict[str, Any] = {"model": str(model), "data": (str(data),), "output": str(output), "max_length": 128}
    values |= {"method": "qlora-4", "max_steps": steps, "examples_per_step": 4, "save_steps": 2, "eval_steps": 3}
    values |= {"val_size": 2.0, "lora_r": 4, "learning_rate": 1e-2, "read_back": False, **EXECUTION, **changes}
    scopes: dict[str, Any] = {"recipe": {}, "execution": {}, "run": {}}
    for name, setting in settings().items():
        scopes[setting.scope][name] = Resolved(value=values.get(name, setting.default), source="default")
    return RunPlan(
        **scopes,
        report=HardwareReport(platform=Platform(system="linux")),
        model=model_facts(model),
        data=data_facts(data),
        memory=MemoryEstimate(parts=(), instant="loss", peak_bytes=0, error_bytes=0),
        time=TimeEstimate(steps=steps, step_seconds=1, seconds_low=1, seconds_high=2, basis="by hand"),
    )


def model_facts(model: Path) -> ModelFacts:
    """The facts of the tiny model (their sizes do not matter to the core)."""
    numbers: dict[str, Any] = dict.fromkeys(("embedding_params", "head_params", "other_params"), 0)
    return ModelFacts(
        source=str(model),
        model_type="qwen3",
        exact=True,
        hidden_size=64,
        vocab_size=320,
        tied_embeddings=False,
        layers=(LayerGroup(kind="attention", count=3, linears=(), params=1, intermediate_size=1),),
        fingerprint="tiny",
        **numbers,
    )


def data_facts(data: Path) -> DataFacts:
    """The facts of a data file: only its fingerprint is read by the core."""
    counts: dict[str, Any] = dict.fromkeys(
        ("rows", "train_rows", "held_out_rows", "rows_rejected", "rows_cut", "rows_dropped"), 0
    )
    source = SourceFacts(
        path=str(data),
        fingerprint=hashlib.sha256(data.read_bytes()).hexdigest() if data.is_file() else "",
        file_format="JSONL",
        row_shape="messages",
        rows=0,
        rows_rejected=0,
    )
    return DataFacts(
        sources=(source,),
        longest_tokens=0,
        mean_tokens=0,
        mean_supervised_tokens=0,
        length_quantiles=(),
        template="chatml",
        stop_token="<|im_end|>",
        **counts,
    )
