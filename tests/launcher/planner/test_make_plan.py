"""From values to a plan: the lengths that data is counted at are the plan's own, whoever set them."""

from pathlib import Path
from typing import Any

import pytest
from support.models import save_tiny_model, write_rows
from support.planning_facts import asking, card_report

from qlora_profiles.catalogue import load_profile
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Profile, Request, RunPlan
from qlora_run.machine.measurements.records import Kernels, machine_of
from qlora_run.machine.measurements.store import name_of, store
from qlora_run.planner.make_plan import PlanInput, make_plan


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_tiny_model(folder / "tiny")
    write_rows(folder / "rows.jsonl")
    return folder


def planned(home: Path, profile: Profile | None = None, **values: Any) -> RunPlan:
    request = asking(model=str(home / "tiny"), data=str(home / "rows.jsonl"), val_size=2.0, profile=profile, **values)
    return make_plan(PlanInput(request=request, report=card_report(8)))


def with_settings(**settings: Any) -> Profile:
    return Profile(name="own", about="", machine=load_profile("linux-8gb").machine, settings=settings)


def test_rows_are_cut_at_the_length_of_the_plan(home: Path) -> None:
    whole, asked = planned(home), planned(home, max_length=40)
    assert whole.data.rows_cut == 0
    assert asked.data.rows_cut > 0
    by_profile = planned(home, with_settings(max_length=40))
    assert by_profile.recipe["max_length"].value == 40
    assert by_profile.data == asked.data


def test_auto_undoes_a_profiles_length(home: Path) -> None:
    plan = planned(home, with_settings(max_length=40), max_length="auto")
    assert plan.recipe["max_length"].source == "data"
    assert plan.data.rows_cut == 0


def test_a_profiles_model_is_the_one_that_is_read(home: Path) -> None:
    request = asking(data=str(home / "rows.jsonl"), profile=with_settings(model=str(home / "tiny")))
    plan = make_plan(PlanInput(request=request, report=card_report(8)))
    assert plan.model.name == "tiny"
    assert plan.recipe["model"].source == "profile"


def test_a_model_is_chosen_for_the_rows_there_are(home: Path) -> None:
    few = PlanInput(request=asking(data=str(home / "rows.jsonl")), report=card_report(12), only_planning=True)
    none = PlanInput(request=Request(), report=card_report(12), only_planning=True)
    for asked in (few, none):
        model = make_plan(asked).recipe["model"]
        assert model.source == "probe"
        assert "largest Qwen3" in model.reason


def test_measurements_that_cannot_be_read_are_a_note(home: Path, tmp_path: Path) -> None:
    plan = planned(home)
    machine = machine_of(plan.report)
    assert machine is not None
    path = store().path(name_of(machine, Kernels.of(plan.execution_values())))
    assert path.is_relative_to(tmp_path / "cache")
    path.parent.mkdir(parents=True)
    path.write_text("not json", encoding="utf-8")
    again = planned(home)
    assert not again.memory.calibrated
    assert any("measurements left out" in note for note in again.notes)


def test_a_recipe_that_cannot_fit_is_changed_when_that_is_allowed(home: Path) -> None:
    values: dict[str, Any] = {"model": "Qwen/Qwen3-8B", "data": str(home / "rows.jsonl"), "max_length": 40_000}
    report = card_report(11, system="windows")

    def plan(**more: Any) -> RunPlan:
        request = asking(**values, **more)
        return make_plan(PlanInput(request=request, report=report, only_planning=True))

    with pytest.raises(UserError) as caught:
        plan()
    offered = str(caught.value.fix).split()[1]
    changed = plan(allow_recipe_change="yes")
    assert changed.memory.fits
    assert changed.recipe["max_length"].value == int(offered)
    assert any(note.startswith("the recipe was changed") for note in changed.notes)
