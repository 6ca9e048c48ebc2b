"""``profiles`` as people use it: listed, shown, saved from a run, and every shipped one plans what it promises."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.command_line import refused, said
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles import codec
from qlora_profiles.catalogue import load_profile, profile_names
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import MachineClass, Profile, RunPlan
from qlora_run.planner import resolve
from qlora_run.planner.make_plan import PlanInput, make_plan
from qlora_run.runs.profile_of import profile_of

Caught = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QLORA_RUN_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def plan_with(**wishes: Any) -> RunPlan:
    return resolve(load_machine("windows-12gb"), asking(**wishes), known("Qwen/Qwen3-4B"), data_of())


def leave_plan(here: Path, **wishes: Any) -> None:
    folder = here / "runs" / "a"
    folder.mkdir(parents=True)
    codec.save(plan_with(model="Qwen/Qwen3-4B", **wishes), folder / "plan.json")


def test_a_plan_is_saved_shown_listed_and_used(here: Path, capsys: Caught) -> None:
    leave_plan(here, lora_r=48, learning_rate=1e-4, workers=0, data="my.jsonl", output="runs/a")
    text = said(capsys, "profiles", "save", "mine", "--from", "runs/a")
    assert text.splitlines()[-1] == "Next: qlora-run --profile mine --data FILE"
    shown = msgspec.json.decode(said(capsys, "profiles", "show", "mine", "--json"), type=Profile)
    assert shown.machine == MachineClass(system="windows", vram_gib=12)
    assert shown.settings["model"] == "Qwen/Qwen3-4B"
    assert (shown.settings["lora_r"], shown.settings["workers"]) == (48, 0)
    assert {"method", "max_length"} <= shown.settings.keys()
    assert not {"data", "output", "epochs", "token_budget"} & shown.settings.keys()
    listed = said(capsys, "profiles")
    assert "yours, in " in listed
    assert "mine          your own: Qwen3-4B by" in listed
    plan = codec.from_json(said(capsys, "plan", "--profile", "mine", "--as", "windows-12gb", "--json"), RunPlan, "out")
    assert plan.recipe_values().lora_r == 48
    assert plan.recipe["lora_r"].source == "profile"


def test_auto_on_the_command_line_undoes_a_profiles_value(capsys: Caught) -> None:
    line = ("plan", "--profile", "linux-12gb", "--as", "linux-12gb", "--json")
    held, freed = (said(capsys, *line, *more) for more in ((), ("--max-length", "auto")))
    by_profile, free = (codec.from_json(text, RunPlan, "out").recipe["max_length"] for text in (held, freed))
    assert (by_profile.source, by_profile.reason) == ("profile", "the profile says so")
    assert free.source == "default"


def test_a_saved_plan_makes_the_same_recipe_again() -> None:
    plan = plan_with(lora_r=48, target_modules="q_proj,v_proj", warmup_steps=3, max_length=1024)
    again = resolve(
        load_machine("windows-12gb"), asking(profile=profile_of(plan, "x")), known("Qwen/Qwen3-4B"), data_of()
    )
    assert msgspec.structs.replace(again.recipe_values(), model="") == msgspec.structs.replace(
        plan.recipe_values(), model=""
    )


def test_a_plan_on_a_cpu_is_a_profile_for_one() -> None:
    plan = resolve(cpu_report(), asking(), known("Qwen/Qwen3-0.6B"), data_of())
    assert profile_of(plan, "x").machine == MachineClass(cpu=True)


def test_saving_needs_a_plan_and_a_free_name(here: Path, capsys: Caught) -> None:
    assert "--from FOLDER-OF-A-RUN" in refused(capsys, "profiles", "save", "mine")
    assert "no plan.json here" in refused(capsys, "profiles", "save", "mine", "--from", ".")
    leave_plan(here)
    assert "comes with the program" in refused(capsys, "profiles", "save", "cpu", "--from", "runs/a")
    said(capsys, "profiles", "save", "mine", "--from", "runs/a")
    assert "--yes replaces it" in refused(capsys, "profiles", "save", "mine", "--from", "runs/a")
    said(capsys, "profiles", "save", "mine", "--from", "runs/a/plan.json", "--yes")
    assert "profiles show NAME" in refused(capsys, "profiles", "keep", "mine")


def test_one_mistake_does_not_hide_the_other_profiles(here: Path, capsys: Caught) -> None:
    leave_plan(here)
    said(capsys, "profiles", "save", "mine", "--from", "runs/a")
    (here.parent / "settings" / "profiles" / "bad.yaml").write_text("extends: nothing\n", encoding="utf-8")
    text = said(capsys, "profiles")
    assert "windows-12gb" in text
    assert "mine          your own" in text
    assert "unknown profile nothing" in text


def machine_for(name: str) -> HardwareReport:
    machine = load_profile(name).machine
    if machine.cpu:
        return cpu_report(16)
    return card_report(machine.vram_gib or 0, system=machine.system)


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_plans_its_model_on_its_machine_without_running_out_of_memory(name: str) -> None:
    """On a card with all of its memory free, and with as little free as a desktop leaves."""
    profile, report = load_profile(name), machine_for(name)
    reports = [report]
    for gpu in report.gpus:
        busy = msgspec.structs.replace(gpu, vram_free_bytes=int(0.92 * (gpu.vram_free_bytes or 0)), drives_display=True)
        reports.append(msgspec.structs.replace(report, gpus=(busy,)))
    for one in reports:
        plan = make_plan(PlanInput(request=asking(profile=profile), report=one, only_planning=True))
        assert plan.model.source == profile.settings["model"]
        assert plan.recipe_values().method == profile.settings["method"]
        assert plan.recipe_values().max_length == profile.settings["max_length"]
        assert plan.memory.fits
        assert plan.memory.budget_bytes is not None
        assert plan.memory.peak_bytes + plan.memory.error_bytes <= plan.memory.budget_bytes
