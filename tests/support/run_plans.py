"""Plans written by hand, for everything that only reads them."""

from typing import Any

import msgspec

from qlora_profiles.facts import (
    DataFacts,
    LayerGroup,
    LinearShape,
    MemoryEstimate,
    MemoryPart,
    ModelFacts,
    SourceFacts,
    TimeEstimate,
)
from qlora_profiles.hardware import Gpu, HardwareReport, Platform, Torch
from qlora_profiles.plan import Resolved, RunPlan
from qlora_profiles.registry import settings
from qlora_profiles.units import GIB

TUNED: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "method": "qlora-4",
    "max_length": 2048,
    "device": "cuda",
    "backend": "peft",
    "compute_dtype": "bfloat16",
    "vram_budget_bytes": int(11.2 * GIB),
    "token_budget": 4096,
    "layers_recomputed": 22,
    "attention": "varlen",
    "loss_kernel": "chunked",
    "loss_chunk_tokens": 1024,
    "optimizer_kernel": "fused",
    "adapter_kernel": "fused",
    "dequantize_kernel": "triton",
    "layer_kernels": "plain",
    "cuda_graphs": False,
    "workers": 0,
    "dataset_workers": 0,
    "pin_memory": True,
    "expandable_segments": True,
    "output": "runs/qwen3-8b-1",
}
SAID = {
    "data": Resolved(value=("my.jsonl",), source="cli"),
    "model": Resolved(value="Qwen/Qwen3-8B", source="cli"),
    "method": Resolved(value="qlora-4", source="probe", reason="16-bit LoRA needs 19.8 GiB"),
    "max_length": Resolved(value=2048, source="data", reason="covers 100% of rows"),
    "examples_per_step": Resolved(value=16, source="config", reason="your batch 1 × accumulation 16"),
    "token_budget": Resolved(
        value=4096, source="tuner", reason="fastest of 38 that fit", if_changed="2,048: 9% slower, 0.9 GiB less"
    ),
    "layers_recomputed": Resolved(
        value=22, source="tuner", reason="the other 14 fit", if_changed="36: 11% slower, 3.1 GiB less"
    ),
    "backend": Resolved(value="peft", source="probe", reason="unsloth: Triton is missing (doctor)"),
}
PARTS = (
    ("base 4-bit", 5.7),
    ("adapter, gradients, optimizer", 0.5),
    ("activations", 2.1),
    ("loss", 0.3),
    ("kernels and context", 1.4),
)


def run_plan(given: dict[str, Any] | None = None, **parts: Any) -> RunPlan:
    """A plan of an 8B model on a 12 GB card; ``given`` are values set on the command line, ``parts`` whole fields."""
    scopes: dict[str, dict[str, Resolved]] = {"recipe": {}, "execution": {}, "run": {}}
    for name, setting in settings().items():
        value = TUNED.get(name, setting.default)
        scopes[setting.scope][name] = SAID.get(
            name, Resolved(value=value, source="tuner" if setting.tuned else "default")
        )
    for name, value in (given or {}).items():
        scopes[settings()[name].scope][name] = Resolved(value=value, source="cli")
    return msgspec.structs.replace(_plan(scopes), **parts)


def _plan(scopes: dict[str, dict[str, Resolved]]) -> RunPlan:
    return RunPlan(
        recipe=scopes["recipe"],
        execution=scopes["execution"],
        run=scopes["run"],
        report=HardwareReport(
            platform=Platform(system="linux"),
            gpus=(Gpu(name="RTX 3060", vram_total_bytes=12 * GIB),),
            torch=Torch(version="2.13.0", build="cuda"),
        ),
        model=model_facts(),
        data=data_facts(),
        memory=memory(),
        time=TimeEstimate(
            steps=366, step_seconds=11.5, seconds_low=3720, seconds_high=4800, basis="measured on this card"
        ),
    )


def memory(scale: float = 1.0, budget_gib: float | None = 11.2) -> MemoryEstimate:
    """A 10 GiB peak, or ``scale`` times as much."""
    parts = tuple(MemoryPart(name=n, bytes=int(size * scale * GIB)) for n, size in PARTS)
    return MemoryEstimate(
        parts=parts,
        instant="loss",
        peak_bytes=sum(p.bytes for p in parts),
        error_bytes=int(0.2 * GIB),
        budget_bytes=None if budget_gib is None else int(budget_gib * GIB),
    )


def model_facts() -> ModelFacts:
    """The shape of an 8B model, one linear layer standing for all."""
    return ModelFacts(
        source="Qwen/Qwen3-8B",
        model_type="qwen3",
        exact=True,
        hidden_size=4096,
        vocab_size=151_936,
        tied_embeddings=False,
        layers=(
            LayerGroup(
                kind="attention",
                count=36,
                linears=(LinearShape(name="q_proj", out_features=4096, in_features=4096),),
                params=192_937_984,
                intermediate_size=12288,
                num_heads=32,
                num_kv_heads=8,
                head_dim=128,
            ),
        ),
        embedding_params=622_329_856,
        head_params=622_329_856,
        other_params=308_224,
        fingerprint="model-1",
    )


def data_facts() -> DataFacts:
    """1,950 rows of chat, none of them cut."""
    source = SourceFacts(
        path="my.jsonl",
        fingerprint="data-1",
        file_format="jsonl",
        row_shape="messages",
        rows=1950,
        rows_rejected=0,
    )
    return DataFacts(
        sources=(source,),
        rows=1950,
        train_rows=1900,
        held_out_rows=50,
        rows_rejected=0,
        rows_cut=0,
        rows_dropped=0,
        longest_tokens=1804,
        mean_tokens=935.0,
        mean_supervised_tokens=300.0,
        length_quantiles=tuple(range(0, 1100, 100)),
        template="qwen",
        stop_token="<|im_end|>",
    )
