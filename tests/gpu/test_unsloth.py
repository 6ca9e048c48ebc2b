"""Unsloth under our step learns what the plain backend does; each runs in a process of its own."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from support.models import save_tiny_model, write_rows
from support.one_backend import ADAPTER, COUNTS, GRADIENTS

from qlora_core.backends import parity
from qlora_profiles import events, run_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.skipif(find_spec("unsloth") is None, reason="unsloth is not installed"),
    pytest.mark.filterwarnings("default"),
]
ROOT = Path(__file__).parents[2]
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "head_dim": 32}
ON_CARD = {"device": "cuda", "compute_dtype": "bfloat16", "attention": "varlen", "optimizer_kernel": "fused"}
LAYERS = 3


class Side(NamedTuple):
    """What one backend said."""

    told: dict[str, Any]
    gradients: dict[str, torch.Tensor]
    folder: Path


def environment() -> dict[str, str]:
    sources = [str(ROOT / name) for name in ("launcher", "core", "profiles", "tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join([*sources, os.environ.get("PYTHONPATH", "")])}


def side(root: Path, family: str, method: str, backend: str, adapter: Path | None) -> Side:
    folder = root / backend
    folder.mkdir()
    settings = {"backend": backend, "method": method, **ON_CARD}
    job = {"model": str(root / "model"), "folder": str(folder), "family": family, "settings": settings}
    path = folder / "job.json"
    path.write_text(json.dumps(job | {"adapter": str(adapter) if adapter else None}), encoding="utf-8")
    command = [sys.executable, "-m", "support.one_backend", str(path)]
    done = subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8", timeout=400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    return Side(told, load_file(folder / GRADIENTS), folder)


@pytest.fixture(scope="module", params=[("qwen3", "qlora-4"), ("llama", "lora")], ids=lambda p: "-".join(p))
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """Unsloth, and the plain backend, which is given Unsloth's adapter."""
    family, method = request.param
    root = tmp_path_factory.mktemp(family)
    write_rows(save_tiny_model(root / "model", family, **SHAPE) / "rows.jsonl")
    theirs = side(root, family, method, "unsloth", None)
    return theirs, side(root, family, method, "peft", theirs.folder / ADAPTER)


def flat(gradients: dict[str, torch.Tensor], count: int) -> torch.Tensor:
    return torch.cat([gradients[name].flatten() for name in sorted(gradients) if name.startswith(f"{count}/")])


def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_losses_and_gradients_are_those_of_the_plain_backend(sides: tuple[Side, Side]) -> None:
    theirs, plain = sides
    assert theirs.gradients.keys() == plain.gradients.keys()
    assert theirs.told["dtypes"] == plain.told["dtypes"] == ["torch.float32"]
    for count in COUNTS:
        assert theirs.told["losses"][str(count)] == pytest.approx(plain.told["losses"][str(count)], rel=5e-3)
        got, expected = flat(theirs.gradients, count), flat(plain.gradients, count)
        assert likeness(got, expected) > 0.995
        assert float(got.norm()) == pytest.approx(float(expected.norm()), rel=2e-2)


def test_any_number_of_layers_recomputes_to_the_same_gradient(sides: tuple[Side, Side]) -> None:
    theirs, _ = sides
    for count in COUNTS:
        assert theirs.told["calls"][str(count)] == LAYERS + count
        assert theirs.told["losses"][str(count)] == pytest.approx(theirs.told["losses"]["0"], rel=1e-4)
        assert likeness(flat(theirs.gradients, count), flat(theirs.gradients, 0)) > 0.9999


def test_its_adapter_is_a_plain_one(sides: tuple[Side, Side]) -> None:
    theirs, plain = sides
    assert plain.told["adapter_loss"] == pytest.approx(theirs.told["adapter_loss"], rel=5e-3)


def test_a_whole_run_is_compared_first_and_leaves_a_merged_model(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "qwen3", **SHAPE)
    data = write_rows(tmp_path / "rows.jsonl")
    command = [sys.executable, "-m", "qlora_run", "--auto", "--json", "--backend", "unsloth", "--merge"]
    command += ["--model", str(model), "--data", str(data), "--output", str(tmp_path / "out"), "--method", "qlora-4"]
    command += ["--max-steps", "4", "--examples-per-step", "4", "--max-length", "128", "--val-size", "4"]
    command += ["--sample-prompts", "say the quick fox"]
    own = environment() | {"QLORA_RUN_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=own, capture_output=True, encoding="utf-8", timeout=500)
    log = tmp_path / "out" / "run.log"
    said = done.stderr[-2000:] + (log.read_text(encoding="utf-8")[-4000:] if log.is_file() else "")
    assert done.returncode == 0, said
    found = events.all_events(tmp_path / "out" / run_folder.EVENTS)
    assert [e.backend for e in found if isinstance(e, events.RunEvent)] == ["unsloth"], said
    assert len([e for e in found if isinstance(e, events.StepEvent)]) == 4
    assert len([e for e in found if isinstance(e, events.SampleEvent)]) == 2
    assert len(list((tmp_path / "cache" / "machine" / parity.KIND).glob("*.json"))) == 1
    assert (tmp_path / "out" / "final_model" / "model.safetensors").is_file()
