"""The program as a person calls it: in this process, or as a process of its own."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qlora_core.export.artifacts import BaseRecord
from qlora_profiles import codec, run_folder
from qlora_profiles.events import DoneEvent, StepEvent, encode
from qlora_profiles.plan import RunPlan
from qlora_run.__main__ import main

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT / name) for name in ("launcher", "core", "profiles")]
NO_HUB = "http://127.0.0.1:9"
"""A port that nobody listens on: nothing leaves the machine."""


def python_path(*first: Path) -> str:
    """``PYTHONPATH`` for a child: ``first``, our sources, and what is on it here, where packages may lie."""
    return os.pathsep.join(filter(None, [*map(str, first), *SOURCES, os.environ.get("PYTHONPATH")]))


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with a digest of its bytes."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2, block: bool = False) -> str:
    """What a command says that is refused: one line and the way on, or with ``block`` one block; nothing changes."""
    before = contents(Path.cwd())
    found = main(list(argv))
    out, err = capsys.readouterr()
    assert (found, out) == (code, ""), out + err
    assert "Traceback" not in err
    lines = err.rstrip("\n").split("\n")
    assert block or len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("  -> ")), err
    assert contents(Path.cwd()) == before
    return " ".join(err.split())


def said(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    """Standard output of a command that works."""
    found = main(list(argv))
    out, err = capsys.readouterr()
    assert found == code, out + err
    return out


def process(
    *argv: str,
    cwd: Path,
    env: Mapping[str, str | None] | None = None,
    command: Sequence[str] = (sys.executable, "-m", "qlora_run"),
) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own, off the network; ``None`` in ``env`` takes a variable out."""
    ours = {"HF_ENDPOINT": NO_HUB, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": python_path()}
    wished = {**os.environ, **ours, **(env or {})}
    environment = {name: value for name, value in wished.items() if value is not None}
    return subprocess.run([*command, *argv], cwd=cwd, env=environment, capture_output=True, timeout=300)


def planned(capsys: pytest.CaptureFixture[str], *argv: str) -> RunPlan:
    """The plan that a command line leads to."""
    text = said(capsys, *argv, "--dry-run", "--json")
    return codec.from_json(text, RunPlan, "standard output")


def leave_run(folder: Path, plan: RunPlan, step: int = 4, finished: bool = True) -> Path:
    """A folder as a run of ``plan`` leaves it, but for the weights."""
    folder.mkdir(parents=True)
    codec.save(plan, folder / "plan.json")
    (folder / "checkpoint-2").mkdir()
    numbers: dict[str, Any] = {"loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0, "step_seconds": 1.0, "epoch": 0.1}
    counts: dict[str, Any] = dict.fromkeys(("supervised_tokens", "tokens", "examples", "micro_batches"), 1)
    lines = [encode(StepEvent(time_s=1.0, step=n, **numbers, **counts)) for n in range(1, step + 1)]
    if finished:
        lines.append(encode(DoneEvent(time_s=2.0, status="finished", exit_code=0, step=step, seconds=1.0)))
    (folder / run_folder.EVENTS).write_text("".join(lines), encoding="utf-8")
    return folder


def adapter_on(base: Path, folder: Path) -> Path:
    """A folder that looks like an adapter on ``base``, up to the weights."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    shape: dict[str, Any] = {"model_type": "qwen3", "hidden_size": 64, "num_layers": 3}
    record = BaseRecord(model=str(base), revision=None, fingerprint="f", stop_ids=(2,), method="lora", **shape)
    codec.save(record, folder / "base.json")
    return folder
