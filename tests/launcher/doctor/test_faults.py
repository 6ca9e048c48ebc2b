"""Faults planted for real, and the doctor called as a person calls it."""

import os
import shlex
import sys
from pathlib import Path

import pytest
from support.doctor_plants import (
    cpu_torch,
    doctor,
    failed,
    full_disk,
    imitated_card,
    read_only_disk,
    result_of,
    without,
)


def test_bitsandbytes_that_is_missing(tmp_path: Path) -> None:
    found = doctor(tmp_path, path=(without(tmp_path / "path", "bitsandbytes"),))
    problem = failed(found)["packages"]
    assert failed(found).keys() == {"packages"}
    assert problem.seen == "not installed: bitsandbytes"
    assert "16-bit LoRA" in problem.consequence
    assert found.next == "python -m pip install bitsandbytes"
    assert result_of(found, "4-bit").seen == "bitsandbytes is not installed"
    assert " by lora: " in result_of(found, "plan").seen


@pytest.mark.parametrize("metadata", [True, False])
def test_a_torch_without_cuda_in_the_way(metadata: bool, tmp_path: Path) -> None:
    stand_in, driver = cpu_torch(tmp_path / "path", metadata=metadata), imitated_card(tmp_path / "driver")
    found = doctor(tmp_path, "--quick", path=(stand_in, driver), env={"CUDA_VISIBLE_DEVICES": "0"})
    problem = failed(found)["torch"]
    assert failed(found).keys() == {"torch"}
    assert "+cpu is a cpu build: it cannot see the NVIDIA H200" in problem.seen
    assert "CPU, many times slower" in problem.consequence
    assert found.next == f"take {stand_in} off PYTHONPATH"
    assert problem.fix is not None
    if sys.platform != "win32":
        (line,) = problem.fix.commands
        left = shlex.split(line)[1].removeprefix("PYTHONPATH=").split(os.pathsep)
        assert str(stand_in) not in left
        assert str(driver) in left


def test_a_torch_without_cuda_where_there_is_no_card_is_well(tmp_path: Path) -> None:
    found = doctor(tmp_path, path=(cpu_torch(tmp_path / "path"),))
    assert failed(found) == {}
    assert result_of(found, "torch").seen.endswith("(cpu build)")
    assert result_of(found, "device").verdict == "ok"
    assert not found.summary.startswith("Ready")


def test_a_full_disk(tmp_path: Path) -> None:
    with full_disk(tmp_path / "disk") as disk:
        env = {"HF_HOME": str(disk / "hub")}
        found = doctor(tmp_path, "--quick", "--output", str(disk / "run"), env=env)
        cache_only = doctor(tmp_path, "--quick", env=env)
    assert failed(found).keys() == {"cache-disk", "cache-folder", "output-folder", "plan"}
    assert failed(cache_only).keys() == {"cache-disk", "cache-folder"}
    for one in (found, cache_only):
        assert failed(one)["cache-disk"].seen.startswith("0.0 GiB free for downloads")
        assert failed(one)["cache-folder"].seen.endswith("No space left on device")
        assert one.next.startswith("qlora-run doctor --cache ")
        assert result_of(one, "symlinks").verdict == "skipped"
    assert failed(found)["plan"].seen.startswith("not enough disk")
    assert result_of(found, "output-disk").verdict == "warn"


def test_a_full_disk_for_the_bug_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qlora_run.__main__ import main

    with full_disk(tmp_path / "disk") as disk:
        assert main(["doctor", "--quick", "--report", str(disk / "report.json")]) == 3
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "--report FILE in another folder" in said


def test_a_cache_that_nobody_may_write_to(tmp_path: Path) -> None:
    with read_only_disk(tmp_path / "disk") as disk:
        found = doctor(tmp_path, "--quick", env={"HF_HOME": str(disk)})
    assert failed(found).keys() == {"cache-folder"}
    assert failed(found)["cache-folder"].seen.endswith("Read-only file system")
    assert found.next.endswith('HF_HOME="$PWD/hub"')


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("", encoding="utf-8")
    found = doctor(tmp_path, "--quick", env={"HF_HOME": str(tmp_path / "hub")})
    assert failed(found).keys() == {"cache-folder"}
    assert failed(found)["cache-folder"].seen.endswith(f"{tmp_path / 'hub'}: a file, not a folder")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_cache_without_permission(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir(mode=0o500)
    found = doctor(tmp_path, "--quick", env={"HF_HOME": str(tmp_path / "hub")})
    assert failed(found).keys() == {"cache-folder"}
    assert failed(found)["cache-folder"].seen.endswith("Permission denied")
