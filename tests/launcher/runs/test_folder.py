import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from support.command_line import contents, leave_run
from support.run_plans import run_plan

from qlora_core.export.tokenizer_copy import NAMES, PATTERNS
from qlora_profiles import codec
from qlora_profiles.errors import UserError
from qlora_profiles.file_lock import claimed
from qlora_profiles.plan import Resolved, RunPlan
from qlora_profiles.run_folder import CORE_RUNNING, DIGESTS, RUNNING
from qlora_run.commands.train import tell_finished
from qlora_run.runs import folder as folder_module
from qlora_run.runs.folder import (
    check_free,
    claim,
    default_output,
    free_sibling,
    latest_run,
    look,
    newest_run,
    occupied,
    stopped_run,
    with_full_paths,
    with_output,
)
from qlora_run.runs.own_files import WRITTEN


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def to(folder: str, **given: object) -> RunPlan:
    return run_plan({"output": folder, **given})


def error_of(folder: str, plan: RunPlan) -> str:
    with pytest.raises(UserError) as caught:
        claim(Path(folder), plan)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_empty_or_missing_folder_is_new(here: Path) -> None:
    (here / "empty").mkdir()
    (here / "notes").mkdir()
    (here / "notes" / "todo.txt").write_text("x", encoding="utf-8")
    for name in ("missing", "empty", "notes"):
        assert look(here / name).state == "new"
        assert claim(here / name, to(name)).state == "new"


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "x.safetensors", "checkpoint-7", "lora_adapter", "events.jsonl"]
)
def test_somebody_elses_files_are_left_alone(here: Path, name: str) -> None:
    folder = here / "other"
    folder.mkdir()
    (folder / name).write_text("theirs", encoding="utf-8")
    assert look(folder).state == "foreign"
    assert "holds files of something else; refusing to mix  -> --output" in error_of("other", to("other"))
    claim(folder, to("other", overwrite=True))
    assert (folder / name).read_text(encoding="utf-8") == "theirs"


def test_an_unfinished_run_of_the_same_recipe_is_gone_on_with(here: Path) -> None:
    leave_run(here / "r", to("r"), finished=False)
    found = claim(Path("r"), to("r", token_budget=512))
    assert (found.state, found.last_step) == ("unfinished", 4)
    assert (here / "r" / "checkpoint-2").is_dir()


def test_an_unfinished_run_is_not_thrown_away_by_resume_never(here: Path) -> None:
    leave_run(here / "r", to("r"), finished=False)
    assert "stopped at step 4  -> qlora-run resume r   or   --overwrite" in error_of("r", to("r", resume="never"))


def test_another_recipe_is_refused_with_the_difference_and_both_ways_on(here: Path) -> None:
    leave_run(here / "r", to("r"), finished=False)
    text = error_of("r", to("r", learning_rate=0.5))
    assert "r stopped at step 4. Changed since: learning-rate 2e-4 -> 0.5. Refusing to mix." in text
    assert "qlora-run resume r (old settings)   or   --output r-2" in text
    (here / "r-2").mkdir()
    assert "   or   --output r-3" in error_of("r", to("r", learning_rate=0.5))


@pytest.mark.parametrize(
    ("taken", "free"),
    [("r", "r-2"), ("runs/qwen3-8b-1", "runs/qwen3-8b-2"), ("r-9", "r-10"), ("20270101", "20270101-2"), (".", "run-2")],
)
def test_a_free_folder_lies_beside_the_taken_one(taken: str, free: str, here: Path) -> None:
    assert free_sibling(Path(taken)) == Path(free)


def test_a_finished_run_is_never_trained_over(here: Path) -> None:
    leave_run(here / "r", to("r"))
    text = error_of("r", to("r", merge=True))
    assert "r holds this very run, finished at step 4; not merged yet  -> qlora-run merge r   or   --overwrite" in text
    other = error_of("r", to("r", seed=7))
    assert "seed 42 -> 7" in other
    assert "resume" not in other  # it cannot be gone on with
    assert "r finished at step 4. Changed since: seed" in other
    assert "stopped" not in other
    assert "--output r-2   or   --overwrite" in other


def test_looking_changes_nothing_and_says_the_same(here: Path) -> None:
    leave_run(here / "r", to("r"))
    with pytest.raises(UserError, match="finished at step 4"):
        check_free(Path("r"), to("r"))
    check_free(Path("r"), to("r", overwrite=True))
    assert (here / "r" / "plan.json").is_file()


def test_a_run_that_never_took_a_step_gives_way(here: Path) -> None:
    folder = leave_run(here / "r", to("r"), step=0, finished=False)
    (folder / "checkpoint-2").rmdir()
    assert claim(folder, to("r", learning_rate=0.5)).state == "new"
    assert not (folder / "plan.json").exists()


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(here: Path) -> None:
    folder = leave_run(here / "r", to("r"))
    (folder / "mine.txt").write_text("x", encoding="utf-8")
    for name in ("lora_adapter", "final_model", "final_model.part", "best_adapter", "checkpoint-4"):
        (folder / name).mkdir(exist_ok=True)
        for pattern in {*WRITTEN, *NAMES, *PATTERNS} - {"additional_chat_templates"}:  # the last is a folder
            inside = folder / name / pattern.replace("*", "x")
            inside.parent.mkdir(exist_ok=True)
            inside.write_text("x", encoding="utf-8")
        (folder / name / DIGESTS).write_text("x", encoding="utf-8")
    (folder / "checkpoint-mine").mkdir()
    (folder / "checkpoint-mine" / "notes.txt").write_text("x", encoding="utf-8")
    assert claim(folder, to("r", overwrite=True)).state == "new"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-mine", "mine.txt"]


def test_no_name_of_a_folder_steers_the_terminal(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_run(here / "\x1b[2J", to("\x1b[2J"))
    tell_finished(Path("\x1b[2J"))
    told = capsys.readouterr().err
    assert told.startswith("\\x1b[2J: finished already, at step 4")
    assert "\x1b" not in told


def test_overwrite_refuses_before_it_deletes_anything(here: Path) -> None:
    folder = leave_run(here / "r", to("r"))
    theirs = here / "theirs"
    theirs.mkdir()
    (theirs / "adapter_model.safetensors").write_text("x", encoding="utf-8")
    (folder / "lora_adapter").mkdir()
    (folder / "lora_adapter" / "notes.txt").write_text("mine", encoding="utf-8")
    before = contents(here)
    assert "would delete r/lora_adapter/notes.txt, which no run of ours wrote" in error_of("r", to("r", overwrite=True))
    assert contents(here) == before
    shutil.rmtree(folder / "lora_adapter")
    if sys.platform == "win32":  # links need a right there
        return
    (folder / "final_model").symlink_to(theirs)
    before = contents(here)
    assert "r/final_model is a link to" in error_of("r", to("r", overwrite=True))
    assert contents(here) == before


@pytest.mark.parametrize(("told", "newest", "lost"), [(4, 2, False), (4, 40, True), (0, 2, True), (38, 40, False)])
def test_events_that_are_lost_are_told(here: Path, told: int, newest: int, lost: bool) -> None:
    folder = leave_run(here / "r", to("r"), step=told, finished=False)
    (folder / f"checkpoint-{newest}").mkdir(exist_ok=True)
    note = look(folder).note
    assert (f"checkpoint {newest} is there" in note and "is lost" in note) if lost else note == ""


@pytest.mark.parametrize(("setting", "value"), [("model", "r/final_model"), ("data", ("r/rejected.jsonl",))])
def test_overwrite_never_deletes_what_the_run_is_made_of(here: Path, setting: str, value: Any) -> None:
    folder = leave_run(here / "r", to("r"))
    (folder / "final_model").mkdir()
    assert f"--overwrite would delete the {setting} of this run" in error_of(
        "r", to("r", overwrite=True, **{setting: value})
    )
    assert (folder / "plan.json").is_file()


@pytest.mark.parametrize("text", ["{", "", "[]", '{"a": 1}', "\xff"])
def test_a_damaged_plan_is_one_line(here: Path, text: str) -> None:
    folder = leave_run(here / "r", to("r"))
    (folder / "plan.json").write_bytes(text.encode("latin-1"))
    assert look(folder).state == "damaged"
    assert "plan.json: " in error_of("r", to("r"))
    assert "--overwrite to lose what is in r" in error_of("r", to("r"))
    assert claim(folder, to("r", overwrite=True)).state == "new"


def test_a_plan_with_values_of_another_type_is_damaged(here: Path) -> None:
    plan = to("r")
    leave_run(
        here / "r", msgspec.structs.replace(plan, recipe=plan.recipe | {"seed": Resolved(value="x", source="cli")})
    )
    assert "Expected `int`" in look(here / "r").problem


def test_the_default_folder_counts_up_and_finds_a_stopped_run(here: Path) -> None:
    def default(**given: object) -> str:
        plan = run_plan(given)
        assert with_output(plan).run["output"].source == "default"
        return Path(with_output(plan).run_values().output).as_posix()

    fresh = msgspec.structs.replace(run_plan(), run=run_plan().run)
    assert default() == "runs/qwen3-8b-1"
    leave_run(here / "runs" / "qwen3-8b-1", fresh)
    assert default() == "runs/qwen3-8b-2"
    leave_run(here / "runs" / "qwen3-8b-2", fresh, finished=False)
    leave_run(here / "runs" / "qwen3-8b-3", run_plan({"seed": 1}), finished=False)
    assert default() == "runs/qwen3-8b-2"
    assert default(seed=1) == "runs/qwen3-8b-3"
    assert default(seed=2) == default(resume="never") == "runs/qwen3-8b-4"
    assert default_output("Qwen3-8B").as_posix() == "runs/qwen3-8b-4"


def test_a_value_that_nobody_decided_does_not_part_a_run_from_its_first_half(here: Path) -> None:
    leave_run(here / "runs" / "qwen3-8b-1", run_plan(), finished=False)
    plan = run_plan()
    machine = Resolved(value="lora", source="probe")
    assert stopped_run(msgspec.structs.replace(plan, recipe=plan.recipe | {"method": machine})) is not None
    person = Resolved(value="lora", source="cli")
    assert stopped_run(msgspec.structs.replace(plan, recipe=plan.recipe | {"method": person})) is None


def test_the_latest_finished_run_and_the_newest_of_all(here: Path) -> None:
    assert latest_run() is newest_run() is None
    for number, name in enumerate(("a", "b", "c")):
        folder = leave_run(here / "runs" / name, run_plan(), finished=name != "c")
        os.utime(folder / "events.jsonl", (number, number))
    assert latest_run() == Path("runs/b")
    assert newest_run() == Path("runs/c")


def test_a_folder_is_held_by_one_run_at_a_time(here: Path) -> None:
    with occupied(here / "r"):
        with (
            pytest.raises(UserError, match=rf"another run is writing there \(process {os.getpid()}\)"),
            occupied(here / "r"),
        ):
            pass
        assert (here / "r" / RUNNING).is_file()
    with occupied(here / "r"):
        pass
    assert not (here / "r" / RUNNING).exists()


def test_a_core_that_outlives_its_launcher_keeps_the_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "CORE_PATIENCE_SECONDS", 0.05)
    (here / "r").mkdir()
    said: list[str] = []
    with claimed(here / "r" / CORE_RUNNING):
        with (
            pytest.raises(UserError, match=rf"another run is writing there \(process {os.getpid()}\)"),
            occupied(here / "r", said.append),
        ):
            pass
        assert [f"process {os.getpid()} of an earlier start still saves there" in line for line in said] == [True]
    with occupied(here / "r"):
        pass


@pytest.mark.parametrize("mark", ["", "x y z", "1"])
def test_a_mark_left_by_a_kill_holds_nothing(here: Path, mark: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (here / "r").mkdir()
    (here / "r" / RUNNING).write_text(mark or f"{child.pid} {psutil.Process().create_time()}", encoding="utf-8")
    with occupied(here / "r"):
        pass


def test_a_folder_that_cannot_be_written(here: Path) -> None:
    (here / "file").write_text("x", encoding="utf-8")
    (here / "nowhere").symlink_to("gone")
    (here / "elsewhere").mkdir()
    (here / "linked").symlink_to("elsewhere")
    said = {"file": "file is a file", "file/below/deep": "file is a file", "nowhere": "nowhere is a link that leads"}
    for name, words in said.items():
        with pytest.raises(UserError, match=f"--output {name}: {words}") as caught, occupied(here / name):
            pass
        assert caught.value.fix == "--output ANOTHER-FOLDER"
        with pytest.raises(UserError, match=words):
            check_free(here / name, to(name))
        check_free(here / "linked", to("linked"))
    assert (here / "file").read_text(encoding="utf-8") == "x"


def test_a_stored_plan_is_found_from_any_folder(here: Path) -> None:
    (here / "tiny").mkdir()
    (here / "my.jsonl").write_text("x", encoding="utf-8")
    plan = with_full_paths(run_plan({"model": "tiny", "output": "r", "cache": "c"}))
    assert plan.recipe_values().model == str(here / "tiny")
    assert plan.recipe_values().data == (str(here / "my.jsonl"),)
    assert (plan.run_values().output, plan.run_values().cache) == (str(here / "r"), str(here / "c"))
    assert (plan.run_values().resume, plan.run_values().local_dir) == ("auto", None)
    assert with_full_paths(run_plan()).recipe_values().model == "Qwen/Qwen3-8B"
    assert plan.recipe_digest() == run_plan().recipe_digest()
    codec.save(plan, here / "plan.json")
