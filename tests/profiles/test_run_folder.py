"""The names in a run's folder stand in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import SOURCES

from qlora_profiles import run_folder

SOURCE_FILES = [path for source in SOURCES for path in Path(source).rglob("*.py") if path.stem != "run_folder"]
NAMES = [
    value
    for name, value in vars(run_folder).items()
    if name.isupper() and isinstance(value, str) and value != run_folder.TRACKER_LOGS
]
FOREIGN_OPTIONS = {("aliases.py", run_folder.ADAPTER)}
"""Another script's option is called as our folder is."""


def literals(path: Path) -> Iterator[str]:
    """The string literals of a file that are values: sentences (help, errors, docstrings) have blanks."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value.strip():
            yield node.value


def test_no_other_file_spells_a_name_out() -> None:
    spelt = {(path.name, name) for path in SOURCE_FILES for text in literals(path) for name in NAMES if name in text}
    assert len(SOURCE_FILES) > 100
    assert spelt == FOREIGN_OPTIONS


@pytest.mark.parametrize("name", NAMES)
def test_names_are_plain_and_unlike(name: str) -> None:
    assert name.isascii()
    assert not set(name) & set('/\\:*?"<>| ')
    assert NAMES.count(name) == 1


def test_checkpoints_are_named_and_read_alike(tmp_path: Path) -> None:
    steps = [2, 10, 100]
    for step in steps:
        run_folder.checkpoint_folder(tmp_path, step).mkdir()
    assert sorted(map(run_folder.checkpoint_step, run_folder.checkpoints(tmp_path))) == steps
    assert all(map(run_folder.is_ours, (path.name for path in tmp_path.iterdir())))
    for theirs in ("checkpoint-last", "checkpoint-mine", "checkpoint-7.bak", "checkpoint-\u0663"):
        (tmp_path / theirs).mkdir()
        assert run_folder.checkpoint_step(tmp_path / theirs) == -1
        assert not run_folder.is_ours(theirs)
    assert len(list(run_folder.checkpoints(tmp_path))) == len(steps)


def test_only_what_is_there_is_a_result(tmp_path: Path) -> None:
    (tmp_path / run_folder.PLAN).touch()
    assert list(run_folder.results(tmp_path)) == []
    (tmp_path / run_folder.BEST_ADAPTER).mkdir()
    run_folder.checkpoint_folder(tmp_path, 3).mkdir()
    assert {path.name for path in run_folder.results(tmp_path)} == {run_folder.BEST_ADAPTER, "checkpoint-3"}


def test_what_overwriting_deletes_is_ours_but_never_the_lock() -> None:
    left = {path.name for path in run_folder.left(Path("r"))}
    assert all(map(run_folder.is_ours, left))
    assert run_folder.RUNNING not in left
    assert not run_folder.is_ours("todo.txt")
