"""Which checkpoint a run goes on from: never a half-written or a damaged one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.models import save_tiny_model, write_rows
from support.plans import plan

from qlora_core.train.checkpoints import choose, delete_older, mark_complete, newest
from qlora_profiles import codec, events, run_folder
from qlora_profiles.errors import UserError

DAMAGED = (b"", b"{", b"{}", b"[]", b"1", b'{"step": 4}', b'{"step": 4, "recipe": 5}', b"\xff\xfe", b"\0" * 40)


def checkpoint(output: Path, step: int, mark: bytes | None = None) -> Path:
    """A checkpoint of recipe ``r``; with ``mark`` as its damaged mark."""
    folder = output / f"checkpoint-{step}"
    folder.mkdir()
    mark_complete(folder, step, "r")
    if mark is not None:
        (folder / run_folder.COMPLETE_MARK).write_bytes(mark)
    return folder


def test_the_newest_complete_one_is_taken_by_its_number(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()  # killed in the middle of its save
    assert choose("auto", tmp_path, "r") == newest(tmp_path) == tmp_path / "checkpoint-10"
    assert choose("never", tmp_path, "r") is None
    assert choose("auto", tmp_path / "empty", "r") is None


@pytest.mark.parametrize("mark", DAMAGED)
def test_a_damaged_one_is_passed_over_with_a_warning(mark: bytes, tmp_path: Path) -> None:
    whole, damaged = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, mark)
    warnings: list[str] = []
    assert choose("auto", tmp_path, "r", warnings.append) == whole
    (warning,) = warnings
    assert warning.startswith(f"a damaged checkpoint was passed over: {damaged / run_folder.COMPLETE_MARK}: ")
    assert "\n" not in warning


@pytest.mark.parametrize("damage", ["cut", "emptied", "gone", "longer"])
def test_a_file_that_is_not_as_it_was_written_is_damage_too(damage: str, tmp_path: Path) -> None:
    whole, folder = checkpoint(tmp_path, 2), tmp_path / "checkpoint-4"
    (folder / "inner").mkdir(parents=True)
    (folder / "optimizer.pt").write_bytes(b"0123456789")
    state = folder / "inner" / "state.json"
    state.write_bytes(b"0123456789")
    mark_complete(folder, 4, "r")
    warnings: list[str] = []
    assert choose("auto", tmp_path, "r", warnings.append) == folder
    if damage == "gone":
        state.unlink()
    else:
        state.write_bytes({"cut": b"01234", "emptied": b"", "longer": b"0" * 11}[damage])
    assert choose("auto", tmp_path, "r", warnings.append) == whole
    (warning,) = warnings
    assert str(state) in warning
    assert ("is missing" if damage == "gone" else "of 10 bytes") in warning
    with pytest.raises(UserError, match="a damaged checkpoint"):
        choose(str(folder), tmp_path, "r")


def test_a_mark_of_before_sizes_were_kept_is_taken(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4, b'{"step": 4, "recipe": "r"}')
    (folder / "optimizer.pt").write_bytes(b"0123456789")
    assert choose("auto", tmp_path, "r") == folder


def test_where_all_are_damaged_the_run_starts_anew(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, b"{"), checkpoint(tmp_path, 4, b"{")
    warnings: list[str] = []
    assert choose("auto", tmp_path, "r", warnings.append) is None
    assert len(warnings) == 2


@pytest.mark.parametrize("mark", DAMAGED)
def test_a_damaged_one_that_was_named_is_one_line(mark: bytes, tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    damaged = checkpoint(tmp_path, 4, mark)
    with pytest.raises(UserError, match="a damaged checkpoint") as caught:
        choose(str(damaged), tmp_path, "r")
    assert "\n" not in str(caught.value)
    assert caught.value.fix == "--resume auto"


def test_one_of_another_recipe_is_refused_with_both_ways_on(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 2)
    for resume in ("auto", str(folder)):
        with pytest.raises(UserError, match="another recipe") as caught:
            choose(resume, tmp_path, "other")
        assert f"qlora-run resume {tmp_path} (old settings)   or   " in (caught.value.fix or "")
        assert "--output ANOTHER-FOLDER" in (caught.value.fix or "")


def test_a_run_goes_on_from_the_one_before_a_damaged_one(tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    path = output / "plan.json"
    model, data = save_tiny_model(tmp_path / "tiny"), write_rows(tmp_path / "rows.jsonl")
    codec.save(plan(model, data, output, steps=4, method="lora"), path)
    command = [sys.executable, "-m", "qlora_core", str(path)]
    for _ in range(2):
        assert subprocess.run(command, capture_output=True).returncode == 0
        (output / "checkpoint-4" / run_folder.COMPLETE_MARK).write_text("{", encoding="utf-8")
    past = events.all_events(output / run_folder.EVENTS)
    assert [e.resumed_from for e in past if isinstance(e, events.RunEvent)] == [None, str(output / "checkpoint-2")]
    assert any("damaged checkpoint was passed over" in e.message for e in past if isinstance(e, events.WarningEvent))
    assert [e.step for e in past if isinstance(e, events.StepEvent)] == [1, 2, 3, 4, 3, 4]


def zero_the_second_half(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2] + b"\0" * (len(data) - len(data) // 2))


@pytest.mark.parametrize("damage", ["zeros", "half zeroed", "one bit"])
def test_damage_that_leaves_the_size_is_passed_over(damage: str, tmp_path: Path) -> None:
    whole, folder = checkpoint(tmp_path, 2), tmp_path / "checkpoint-4"
    folder.mkdir()
    file = folder / "adapter_model.safetensors"
    file.write_bytes(bytes(range(1, 201)))
    mark_complete(folder, 4, "r")
    if damage == "half zeroed":
        zero_the_second_half(file)
    else:
        file.write_bytes(b"\0" * 200 if damage == "zeros" else bytes([3, *range(2, 201)]))
    warnings: list[str] = []
    assert choose("auto", tmp_path, "r", warnings.append) == whole
    assert warnings == [f"a damaged checkpoint was passed over: {file} is not as it was written"]
    with pytest.raises(UserError, match="is not as it was written") as caught:
        choose(str(folder), tmp_path / "another", "r")
    assert caught.value.fix == f"--resume {whole}"  # auto looks in the run's own folder


def test_one_of_a_base_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2").mkdir()
    mark_complete(tmp_path / "checkpoint-2", 2, "r", {"weights": "a", "tokenizer": "b"})
    assert choose("auto", tmp_path, "r", base={"weights": "a", "template": "c"}) == tmp_path / "checkpoint-2"
    with pytest.raises(UserError, match="its base has another weights and another tokenizer now"):
        choose("auto", tmp_path, "r", base={"weights": "x", "tokenizer": "y"})


def test_older_ones_are_deleted_and_nothing_else(tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        checkpoint(tmp_path, step)
    for name in ("checkpoint-3", "checkpoint-12", "checkpoint-mine"):  # unfinished, not come to yet, a person's
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-1").write_text("a person's file", encoding="utf-8")
    delete_older(tmp_path, 6, 2)
    left = {path.name.removeprefix("checkpoint-") for path in tmp_path.iterdir()}
    assert left == {"1", "4", "6", "10", "12", "mine"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are needed")
def test_all_is_on_the_disk_before_the_mark_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint-4"
    (folder / "inner").mkdir(parents=True)
    for name in ("optimizer.pt", "inner/state.json"):
        (folder / name).write_bytes(b"x")
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def synced(number: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{number}").readlink().relative_to(tmp_path)))
        sync(number)

    def moved(path: Path, target: Path) -> Path:
        done.append(f"-> {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", moved)
    mark_complete(folder, 4, "r")
    marked = done.index("-> complete.json")
    wanted = {".", *(f"checkpoint-4{end}" for end in ("", "/optimizer.pt", "/inner", "/inner/state.json"))}
    assert wanted <= set(done[:marked])
    assert done[marked - 1].startswith("checkpoint-4/complete.json")  # its bytes before its name
    assert done[marked + 1 :] == ["checkpoint-4"]  # and the name before anything that comes next
