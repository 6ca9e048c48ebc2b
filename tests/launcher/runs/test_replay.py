"""Runs gone on with and made again: the recipe held fast, the losses the same."""

import shutil
from pathlib import Path

import msgspec
import pytest
from support.command_line import leave_run, planned, process, refused, said
from support.models import save_tiny_model, write_rows
from support.run_plans import run_plan

from qlora_profiles import codec
from qlora_profiles.events import CheckpointEvent, RunEvent, StepEvent, all_events
from qlora_profiles.hardware import Memory
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import Given, Request, Resolved, RunPlan
from qlora_run.__main__ import main
from qlora_run.planner import make_plan
from qlora_run.runs.replay import input_from

Caught = pytest.CaptureFixture[str]
SMALL = ("--max-steps", "4", "--examples-per-step", "4", "--save-steps", "2", "--lora-r", "4", "--read-back", "false")
ARGV = ("--model", "tiny", "--data", "rows.jsonl", *SMALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_tiny_model(folder / "tiny")
    write_rows(folder / "rows.jsonl")
    return folder


@pytest.fixture(scope="module")
def finished(home: Path) -> Path:
    """``runs/tiny-1``: a real run of four steps."""
    done = process("--auto", *ARGV, cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "runs" / "tiny-1"


@pytest.fixture
def here(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home / "tiny", tmp_path / "tiny")
    shutil.copy(home / "rows.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("cpu-only"))
    return tmp_path


def losses(folder: Path) -> dict[int, float]:
    return {e.step: e.loss for e in all_events(folder / "events.jsonl") if isinstance(e, StepEvent)}


def stop_after_step_2(run: Path, folder: Path) -> Path:
    """A copy of a run as a kill after its first checkpoint would have left it."""
    shutil.copytree(run, folder)
    for name in ("lora_adapter", "best_adapter", "checkpoint-4"):
        shutil.rmtree(folder / name, ignore_errors=True)
    kept = []
    for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
        kept.append(line)
        if '"type":"checkpoint"' in line:
            break
    (folder / "events.jsonl").write_text("".join(kept) + '{"type": "st', encoding="utf-8")
    assert any(isinstance(e, CheckpointEvent) for e in all_events(folder / "events.jsonl"))
    return folder


def test_a_stopped_run_goes_on_from_any_folder_with_the_same_losses(finished: Path, tmp_path: Path) -> None:
    stopped = stop_after_step_2(finished, tmp_path / "stopped")
    done = process("resume", "stopped", cwd=tmp_path)  # the rows and the model lie elsewhere
    assert done.returncode == 0, done.stderr
    assert b"Going on from step 2" in done.stdout
    started = [e for e in all_events(stopped / "events.jsonl") if isinstance(e, RunEvent)]
    assert started[-1].first_step == 3
    assert losses(stopped) == pytest.approx(losses(finished), rel=1e-5)
    assert (stopped / "lora_adapter" / "adapter_model.safetensors").is_file()


def test_the_same_words_go_on_with_a_stopped_run(here: Path, capsys: Caught) -> None:
    first = said(capsys, "--auto", *ARGV, "--dry-run")
    assert "Writes to runs/tiny-1" in first
    leave_run(here / "runs" / "tiny-1", planned(capsys, *ARGV), finished=False)
    assert "Writes to runs/tiny-1" in said(capsys, "--auto", *ARGV, "--dry-run")
    assert "Writes to runs/tiny-2" in said(capsys, "--auto", *ARGV, "--seed", "7", "--dry-run")
    refused(capsys, "--auto", *ARGV, "--output", "runs/tiny-1", "--seed", "7")
    shutil.rmtree(here / "runs")
    leave_run(here / "runs" / "tiny-1", planned(capsys, *ARGV))
    assert "Writes to runs/tiny-2" in said(capsys, "--auto", *ARGV, "--dry-run")


def test_less_free_memory_does_not_part_a_run_from_its_first_half(
    here: Path, capsys: Caught, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method was chosen by the machine; now the machine would choose another."""
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: load_machine("linux-24gb"))
    plan = planned(capsys, *ARGV)
    assert plan.recipe["method"].value == "lora"
    chosen = Resolved(value="qlora-4", source="probe", reason="memory was tight")
    old = msgspec.structs.replace(plan, recipe=plan.recipe | {"method": chosen})
    for folder, named in (("runs/tiny-1", ()), ("r", ("--output", "r"))):
        leave_run(here / folder, old, finished=False)
        again = planned(capsys, "--auto", *ARGV, *named)
        assert again.recipe["method"].value == "qlora-4"
        assert Path(again.run_values().output) == Path(folder)
    text = refused(capsys, "--auto", *ARGV, "--output", "r", "--method", "lora")
    assert "method qlora-4 -> lora" in text
    report = msgspec.structs.replace(load_machine("cpu-only"), memory=Memory(ram_available_bytes=2**20))
    monkeypatch.setattr(make_plan, "probe", lambda output, cache: report)
    assert "tiny with qlora-4 at 48 tokens needs" in refused(capsys, "resume", "r")


def test_a_replay_is_the_same_run_in_a_new_folder(here: Path, capsys: Caught) -> None:
    plan = planned(capsys, *ARGV, "--output", "r", "--workers", "0", "--overwrite", "--sample-prompts", "hi")
    leave_run(here / "r", plan)
    for named in ("r", "r/plan.json"):
        again = planned(capsys, "replay", named)
        assert again.recipe_digest() == plan.recipe_digest()
        assert Path(again.run_values().output).as_posix() == "runs/tiny-1"
        assert (again.run_values().overwrite, again.run_values().sample_prompts) == (False, ("hi",))
        assert again.execution["workers"].source == "cli"
    moved = planned(capsys, "replay", "r", "--output", "elsewhere", "--token-budget", "512")
    assert (moved.run_values().output, moved.execution_values().token_budget) == ("elsewhere", 512)
    assert moved.recipe_digest() == plan.recipe_digest()
    assert main(["replay", "r", "--output", "r"]) == 0
    assert "r: finished already, at step 4; nothing was done" in capsys.readouterr().err


def test_the_recipe_is_held_and_the_machine_decides_the_rest() -> None:
    old = run_plan({"workers": 3, "merge": True, "output": "r", "resume": "never"})
    held = input_from(old, Request(given={"workers": Given(value=1, source="cli")}))
    assert set(old.recipe) <= set(held.given)
    assert held.given["method"].source == "probe"
    assert held.value("workers") == 1
    assert held.value("merge") is True
    assert not {"token_budget", "output", "resume", "save_steps"} & set(held.given)


def test_what_a_profile_decided_stays_decided() -> None:
    plan = run_plan()
    old = msgspec.structs.replace(plan, recipe=plan.recipe | {"lora_r": Resolved(value=8, source="profile")})
    held = input_from(old, Request())
    assert (held.given["lora_r"].value, held.given["lora_r"].source, held.profile) == (8, "config", None)


def test_an_older_plan_without_a_newer_execution_setting_still_goes_on(here: Path, capsys: Caught) -> None:
    plan = planned(capsys, *ARGV, "--output", "r")
    execution = {name: r for name, r in plan.execution.items() if name != "pin_memory"}
    leave_run(here / "r", msgspec.structs.replace(plan, execution=execution), finished=False)
    again = planned(capsys, "resume", "r")
    assert again.recipe_digest() == plan.recipe_digest()
    assert codec.load(here / "r" / "plan.json", RunPlan).execution.keys() < again.execution.keys()


def test_folders_that_cannot_be_gone_on_with(here: Path, capsys: Caught) -> None:
    for command in ("resume", "replay"):
        assert "nowhere: no such folder" in refused(capsys, command, "nowhere")
        assert "tiny: no plan.json here, so no run of ours" in refused(capsys, command, "tiny")
        assert "rows.jsonl: " in refused(capsys, command, "rows.jsonl")
    leave_run(here / "done", planned(capsys, *ARGV, "--output", "done"))
    assert main(["resume", "done"]) == 0
    assert "done: finished already, at step 4; nothing was done" in capsys.readouterr().err
    assert "keeps what is learned, so --epochs cannot be given" in refused(capsys, "resume", "done", "--epochs", "2")


def test_a_run_whose_data_changed_does_not_go_on(here: Path, capsys: Caught) -> None:
    leave_run(here / "r", planned(capsys, *ARGV, "--output", "r"), finished=False)
    assert "resume goes on in its own folder" in refused(capsys, "resume", "r", "--output", "elsewhere")
    write_rows(here / "rows.jsonl", offset=3)
    assert "r: data changed since this run was planned; it cannot go on" in refused(capsys, "resume", "r")
    assert "it would be another run" in refused(capsys, "replay", "r")
    assert "r stopped at step 4. Changed since: data" in refused(capsys, *ARGV, "--output", "r")
    (here / "rows.jsonl").unlink()
    assert "rows.jsonl no such file" in refused(capsys, "resume", "r")
