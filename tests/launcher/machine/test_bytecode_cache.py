"""Where compiled modules are kept when Python may not keep them: really started, with small stand-ins for torch."""

import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest


def libraries(folder: Path, compiled: bool = False) -> Path:
    for name in ("torch", "transformers"):
        source = folder / name / "__init__.py"
        source.parent.mkdir(parents=True)
        source.write_text("raise ImportError('not to be imported')\n", encoding="utf-8")
        if compiled:
            py_compile.compile(str(source))
    return folder


def kept(tmp_path: Path, site: Path, **variables: str) -> list[Path]:
    """What lies in our cache after one command; nothing may lie beside the libraries that was not there."""
    before = sorted(site.rglob("*"))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = os.pathsep.join([str(site), *(entry for entry in sys.path if entry)])
    environment = inherited | {"PYTHONPATH": path, "QLORA_RUN_CACHE": str(tmp_path / "cache")} | variables
    done = subprocess.run(
        [sys.executable, "-m", "qlora_run", "--version"], env=environment, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert sorted(site.rglob("*")) == before
    return sorted((tmp_path / "cache" / "compiled").rglob("*.pyc"))


def test_in_our_cache_where_python_is_told_to_keep_none(tmp_path: Path) -> None:
    site = libraries(tmp_path / "site")
    found = kept(tmp_path, site, PYTHONDONTWRITEBYTECODE="1")
    assert any("qlora_run" in file.parts for file in found)


def test_what_was_kept_is_used_by_the_next_start(tmp_path: Path) -> None:
    site = libraries(tmp_path / "site")
    first = {file: file.stat().st_mtime_ns for file in kept(tmp_path, site, PYTHONDONTWRITEBYTECODE="1")}
    second = {file: file.stat().st_mtime_ns for file in kept(tmp_path, site, PYTHONDONTWRITEBYTECODE="1")}
    assert first
    assert second == first


@pytest.mark.parametrize(
    ("compiled", "variables"),
    [
        (True, {"PYTHONDONTWRITEBYTECODE": "1"}),
        (False, {}),
        (False, {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": "{own}"}),
    ],
    ids=["compiled already", "python keeps them", "a place of the person's own"],
)
def test_left_alone_otherwise(compiled: bool, variables: dict[str, str], tmp_path: Path) -> None:
    site = libraries(tmp_path / "site", compiled)
    told = {name: value.format(own=tmp_path / "own") for name, value in variables.items()}
    assert kept(tmp_path, site, **told) == []


def test_left_alone_where_our_cache_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    assert kept(tmp_path, libraries(tmp_path / "site"), PYTHONDONTWRITEBYTECODE="1") == []


def test_children_keep_them_there_too(tmp_path: Path) -> None:
    site = libraries(tmp_path / "site")
    code = (
        "import os, sys; sys.path.insert(0, os.environ['SITE']);"
        "from qlora_run.machine.bytecode_cache import keep_compiled;"
        "keep_compiled(); print(os.environ['PYTHONPYCACHEPREFIX'], 'PYTHONDONTWRITEBYTECODE' in os.environ)"
    )
    environment = os.environ | {
        "SITE": str(site),
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "PYTHONDONTWRITEBYTECODE": "1",
        "QLORA_RUN_CACHE": str(tmp_path),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8")
    assert done.stdout.split() == [str(tmp_path / "compiled"), "False"], done.stderr
