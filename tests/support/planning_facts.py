"""Facts written by hand for tests of the planner, and checkpoints that hold headers only."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_profiles.facts import DataFacts, ModelFacts, SourceFacts
from qlora_profiles.hardware import Gpu, HardwareReport, Memory, Platform, Torch
from qlora_profiles.plan import Given, Profile, Request, Source, strongest
from qlora_profiles.registry import lookup, parse
from qlora_profiles.units import GIB
from qlora_run.model_facts import known_facts
from qlora_run.model_facts.safetensors_header import TensorInfo

DECILES = (0.05, 0.08, 0.11, 0.14, 0.17, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0)
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "U8": 1}


def data_of(
    longest: int = 1804, mean: float = 420.0, rows: int = 1950, exact: bool = True, **changes: Any
) -> DataFacts:
    """A data set of instruction rows."""
    source = SourceFacts(
        path="my.jsonl",
        fingerprint="d" * 64,
        file_format="jsonl",
        row_shape="messages",
        rows=rows,
        rows_rejected=0,
    )
    values: dict[str, Any] = {
        "sources": (source,),
        "rows": rows,
        "train_rows": rows - rows // 20,
        "held_out_rows": rows // 20,
        "rows_rejected": 0,
        "rows_cut": 0,
        "rows_dropped": 0,
        "longest_tokens": longest,
        "mean_tokens": min(mean, longest),
        "mean_supervised_tokens": 0.6 * min(mean, longest),
        "length_quantiles": tuple(max(1, int(longest * share)) for share in DECILES),
        "template": "chatml",
        "stop_token": "<|im_end|>",
        "exact": exact,
    }
    return DataFacts(**(values | changes))


def known(name: str) -> ModelFacts:
    """A model of the list of known ones."""
    facts = known_facts(name)
    assert facts is not None
    return facts


def card_report(
    vram_gib: float = 12.0, capability: tuple[int, int] = (8, 6), system: Any = "linux", **changes: Any
) -> HardwareReport:
    """A machine with one NVIDIA card, all of its memory free."""
    gpu = Gpu(
        name="NVIDIA GeForce RTX 3060",
        vram_total_bytes=int(vram_gib * GIB),
        vram_free_bytes=int(vram_gib * GIB),
        capability=capability,
        drives_display=False,
    )
    values: dict[str, Any] = {
        "platform": Platform(system=system),
        "gpus": (gpu,),
        "torch": Torch(version="2.13.0+cu130", build="cuda", cuda="13.0"),
        "memory": Memory(ram_total_bytes=32 * GIB, ram_available_bytes=24 * GIB),
        "cpu_cores_physical": 8,
        "cpu_cores_logical": 16,
    }
    return HardwareReport(**(values | changes))


def cpu_report(ram_gib: float = 16.0) -> HardwareReport:
    """A machine without a card."""
    return HardwareReport(
        platform=Platform(system="linux"),
        torch=Torch(version="2.13.0+cpu", build="cpu"),
        memory=Memory(ram_total_bytes=int(ram_gib * GIB), ram_available_bytes=int(ram_gib * GIB)),
        cpu_cores_physical=8,
        cpu_cores_logical=16,
    )


def given_values(source: Source, **values: Any) -> dict[str, Given]:
    """Settings by name, as given by ``source``."""
    return {k: Given(value=parse(lookup(k), v), source=source) for k, v in values.items()}


def asking(source: Source = "cli", profile: Profile | None = None, **values: Any) -> Request:
    """A request for settings by name, over those of ``profile``."""
    weaker = given_values("profile", **profile.settings) if profile else {}
    return Request(given=strongest(weaker, given_values(source, **values)), profile=profile)


def write_checkpoint(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], shards: int = 1
) -> Path:
    """A model folder with headers of the right size and holes instead of values."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    names = sorted(tensors)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    files = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        write_safetensors(folder / file, {name: tensors[name] for name in names if files[name] == file})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """A safetensors file whose values are a hole."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.params * ITEM_BYTES[tensor.dtype]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode("utf-8")
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
