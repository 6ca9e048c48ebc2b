"""Faults planted on a machine with a card: the doctor finds each, and nothing else; without one it says ready."""

from pathlib import Path

import pytest
import torch
from support.doctor_plants import cpu_torch, doctor, failed, full_disk, held_card, read_only_disk, result_of, without

from qlora_run.probe import probe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]


def test_a_sound_machine_is_ready(tmp_path: Path) -> None:
    found = doctor(tmp_path, card=True)
    assert failed(found) == {}
    assert found.summary.startswith("Ready: ")
    assert found.exit_code in (0, 1)
    assert "on this GPU" in result_of(found, "4-bit").seen


def test_bitsandbytes_that_is_missing(tmp_path: Path) -> None:
    found = doctor(tmp_path, path=(without(tmp_path / "path", "bitsandbytes"),), card=True)
    assert failed(found).keys() == {"packages"}
    assert failed(found)["packages"].seen == "not installed: bitsandbytes"
    assert found.next == "python -m pip install bitsandbytes"


@pytest.mark.parametrize("metadata", [True, False])
def test_a_torch_without_cuda_in_the_way(metadata: bool, tmp_path: Path) -> None:
    stand_in = cpu_torch(tmp_path / "path", metadata=metadata)
    found = doctor(tmp_path, path=(stand_in,), card=True)
    assert failed(found).keys() == {"torch"}
    assert torch.cuda.get_device_name() in failed(found)["torch"].seen or "without CUDA" in failed(found)["torch"].seen
    assert found.next == f"take {stand_in} off PYTHONPATH"


def test_a_card_that_another_process_holds(tmp_path: Path) -> None:
    """No trial on the full card counts against torch or bitsandbytes."""
    with held_card() as holder:
        found = doctor(tmp_path, card=True)
    assert failed(found).keys() == {"vram", "plan"}
    fix = failed(found)["vram"].fix
    assert fix is not None
    assert "nvidia-smi" in fix.say if probe().platform.container else str(holder) in fix.say
    assert found.next == fix.say


def test_a_full_disk(tmp_path: Path) -> None:
    with full_disk(tmp_path / "disk") as disk:
        found = doctor(tmp_path, "--output", str(disk / "run"), card=True, env={"HF_HOME": str(disk / "hub")})
    assert failed(found).keys() == {"cache-disk", "cache-folder", "output-folder", "plan"}
    assert found.next.startswith("qlora-run doctor --cache ")


def test_a_cache_that_nobody_may_write_to(tmp_path: Path) -> None:
    with read_only_disk(tmp_path / "disk") as disk:
        found = doctor(tmp_path, card=True, env={"HF_HOME": str(disk)})
    assert failed(found).keys() == {"cache-folder"}


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("", encoding="utf-8")
    found = doctor(tmp_path, card=True, env={"HF_HOME": str(tmp_path / "hub")})
    assert failed(found).keys() == {"cache-folder"}
