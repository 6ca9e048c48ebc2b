"""What a run fetches before its first step."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.plans import plan

from qlora_core.train import preload
from qlora_core.train.preload import PIECE_BYTES, read_uncached


def in_another_process(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    return done.stdout.split()


def test_bitsandbytes_comes_without_the_compiler_which_is_left_as_it_was() -> None:
    code = """
import sys, torch
compiler = torch.compile
from qlora_core.model.bitsandbytes import import_bitsandbytes
import_bitsandbytes("cpu")
print("bitsandbytes" in sys.modules, "torch._inductor.compile_fx" in sys.modules, torch.compile is compiler)
"""
    assert in_another_process(code) == ["True", "False", "True"]


def test_without_bitsandbytes_the_rest_is_imported_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[str] = []

    def missing(device: str) -> None:
        raise ModuleNotFoundError("bitsandbytes")

    monkeypatch.setattr(preload, "import_bitsandbytes", missing)
    monkeypatch.setattr(preload, "import_module", wanted.append)
    thread = preload.import_meanwhile(plan(model=tmp_path, data=tmp_path, output=tmp_path))
    assert thread is not None
    thread.join()
    assert "peft" in wanted


def test_what_was_imported_is_never_looked_through_again() -> None:
    code = """
import gc
from qlora_core.train.preload import collect_from_here
collect_from_here()
print(gc.get_freeze_count() > 10_000)
gc.disable()
import torch
collect_from_here()
print(gc.get_freeze_count() > 10_000, gc.isenabled())
"""
    assert in_another_process(code) == ["False", "True", "True"]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="the system does not tell what it holds in memory")
def test_only_what_is_not_in_memory_is_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(2 * PIECE_BYTES + 1000))
    with file.open("rb") as opened:
        if not preload._in_memory(opened.fileno(), 0):
            pytest.skip("this file system does not tell what it holds in memory")
    assert read_uncached(file) == 0


def test_a_file_that_is_not_in_memory_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(2 * PIECE_BYTES + 1000))
    monkeypatch.setattr(preload, "_in_memory", lambda handle, start: start == PIECE_BYTES)
    assert read_uncached(file) == PIECE_BYTES + 1000


def test_where_nobody_can_tell_all_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(PIECE_BYTES + 1000))
    monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    assert read_uncached(file) == PIECE_BYTES + 1000
