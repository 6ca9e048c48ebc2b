"""Packages that are missing are told in one line, with the way on, before anything is written."""

from pathlib import Path

import pytest
from support.command_line import process
from support.models import save_tiny_model, write_rows

from qlora_profiles.errors import EnvironmentProblem
from qlora_run.machine.required_packages import check_installed

HIDING = """
import importlib.util
import sys
from importlib.abc import MetaPathFinder

real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {names!r} else real(name, package)

class Hidden(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""


def without(folder: Path, *names: str) -> dict[str, str]:
    """An environment whose Python cannot import some packages."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDING.format(names=names), encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def test_what_is_there_passes() -> None:
    check_installed("json", "msgspec")
    with pytest.raises(EnvironmentProblem, match="not installed: nobody_has_this, nor_this "):
        check_installed("json", "nobody_has_this", "nor_this")


def test_a_package_of_the_launcher(tmp_path: Path) -> None:
    done = process("doctor", cwd=tmp_path, env=without(tmp_path / "hide", "msgspec"))
    assert done.returncode == 3
    assert done.stderr.decode().splitlines() == [
        "msgspec is not installed, which qlora-run needs  -> install it again with all that it needs: "
        "pip install -c constraints.txt .  (in its own folder)"
    ]


def test_a_package_of_the_core(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "tiny")
    write_rows(tmp_path / "rows.jsonl")
    hidden = without(tmp_path / "hide", "peft")
    for words in (["--auto", "--model", "tiny", "--data", "rows.jsonl", "--method", "lora"], ["chat", "tiny"]):
        done = process(*words, cwd=tmp_path, env=hidden)
        assert done.returncode == 3, done.stderr.decode()
        assert "not installed: peft" in done.stderr.decode()
        assert "qlora-run doctor" in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()
    assert not (tmp_path / "runs").exists()
