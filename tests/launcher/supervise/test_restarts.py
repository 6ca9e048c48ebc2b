"""A core that dies is started again from its last checkpoint, smaller, and not for ever."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import support.small_card
import support.standin_core
from support.models import save_tiny_model, write_rows
from support.plans import plan as tiny_plan
from support.run_plans import run_plan
from support.witness import Witness, kill_children

from qlora_core.execution.limits import Limits
from qlora_core.execution.rungs import usable_rungs
from qlora_profiles import codec, events, run_folder
from qlora_profiles.plan import RunPlan
from qlora_run.report.run_state import RunState, fold
from qlora_run.supervise.restarts import CAUSE, MOST_RESTARTS, is_restart, usual_lengths
from qlora_run.supervise.supervisor import run_core

STAND_IN = Path(support.standin_core.__file__)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    plan = run_plan({"output": str(tmp_path), "resume": "never", "overwrite": True})
    codec.save(plan, tmp_path / "plan.json")
    return tmp_path


def run(mode: str, output: Path, view: Witness) -> int:
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return run_core(output / "plan.json", output, view, env, [sys.executable, str(STAND_IN), mode, str(output)])


def adaptations(output: Path) -> list[events.AdaptationEvent]:
    return [e for e in events.all_events(output / run_folder.EVENTS) if isinstance(e, events.AdaptationEvent)]


def test_a_run_survives_deaths_as_long_as_it_gets_on(output: Path) -> None:
    (output / "deaths").write_text("2 1", encoding="utf-8")
    before = codec.load(output / "plan.json", RunPlan)
    view = Witness()
    assert run("fragile", output, view) == 0
    assert view.ended
    assert view.problem is None
    assert [line.split("(restart")[1] for line in view.said] == [" 1 of 3).", " 2 of 3)."]
    assert "Going on from step 2" in view.said[0]
    after = codec.load(output / "plan.json", RunPlan)
    assert after.recipe == before.recipe
    assert after.run_values().resume == "auto"
    assert not after.run_values().overwrite
    assert [(a.cause, a.step) for a in adaptations(output)] == [(CAUSE, 3), (CAUSE, 5)]
    budgets = [before.execution_values().token_budget, after.execution_values().token_budget]
    assert budgets[1] < budgets[0]
    assert adaptations(output)[0].before["token_budget"] == budgets[0]
    assert adaptations(output)[-1].after["token_budget"] == budgets[1]


def limits_of(plan: RunPlan) -> Limits:
    return Limits.of(plan.execution_values())


def test_a_restart_begins_smaller_than_what_died(output: Path) -> None:
    """Not smaller than its plan: what had shrunk to 935 tokens would begin with 2,048 again."""
    before = codec.load(output / "plan.json", RunPlan)
    (output / "deaths").write_text("1 1", encoding="utf-8")
    told = [{"token_budget": 2000}, {"token_budget": 935, "layers_recomputed": 29}, {"evaluation_token_budget": 400}]
    (output / "shrinking.json").write_text(json.dumps(told), encoding="utf-8")
    assert run("shrinking", output, Witness()) == 0
    (change,) = [a for a in adaptations(output) if a.cause == CAUSE]
    died = replace(limits_of(before), token_budget=935, layers_recomputed=29)
    smaller = died.smaller(usual_lengths(before), before.model.num_layers, usable_rungs(before.execution_values()))
    after = codec.load(output / "plan.json", RunPlan)
    assert limits_of(after) == smaller
    assert change.before == {name: getattr(died, name) for name in change.before}
    assert replace(died, **change.after) == smaller
    assert is_restart(after)
    assert not is_restart(before)
    assert limits_of(after).token_budget == 935  # of what died, though this restart did not change it


def test_each_restart_begins_smaller_than_the_one_before_had_become(output: Path) -> None:
    before = codec.load(output / "plan.json", RunPlan)
    (output / "deaths").write_text("2 1", encoding="utf-8")
    told = [{"token_budget": 935, "layers_recomputed": 29}]
    (output / "shrinking.json").write_text(json.dumps(told), encoding="utf-8")
    assert run("shrinking", output, Witness()) == 0
    changes = adaptations(output)
    assert [a.cause == CAUSE for a in changes] == [False, True, False, True, False]
    ran = asdict(limits_of(before))
    for change in changes:
        if change.cause == CAUSE:
            assert change.before == {name: ran[name] for name in change.before}
        ran |= change.after
    second = Limits(**(ran | {"token_budget": 935, "layers_recomputed": 29}))
    assert limits_of(codec.load(output / "plan.json", RunPlan)) == second.smaller(
        usual_lengths(before), before.model.num_layers, usable_rungs(before.execution_values())
    )


def test_deaths_are_not_repeated_for_ever(output: Path) -> None:
    (output / "deaths").write_text("99 1", encoding="utf-8")
    view = Witness()
    assert run("fragile", output, view) == 3
    assert len(view.said) == MOST_RESTARTS
    assert view.problem is not None


def test_a_death_at_the_same_step_is_the_last(output: Path) -> None:
    view = Witness()
    assert run("die", output, view) == 3
    assert len(view.said) == 1
    assert view.problem is not None
    assert "died at step 2" in view.problem.message


def test_a_death_before_the_first_step_is_no_reason_to_try_again(output: Path) -> None:
    view = Witness()
    assert run("traceback", output, view) == 3
    assert view.said == []


def test_what_the_run_says_is_wrong_is_not_tried_again(output: Path) -> None:
    view = Witness()
    assert run("internal", output, view) == 3
    assert view.said == []


def test_the_lengths_of_a_step_hold_the_longest_example() -> None:
    lengths = usual_lengths(run_plan())
    assert len(lengths) == 16
    assert max(lengths) == 1804
    assert min(lengths) == 935


def test_a_killed_core_loses_no_step_and_changes_no_loss(tmp_path: Path) -> None:
    """The real core on a tiny real model, killed in mid-run."""
    model, data = save_tiny_model(tmp_path / "tiny"), write_rows(tmp_path / "rows.jsonl")
    runs = {}
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        facts: dict[str, Any] = {"model": model, "data": data, "output": folder, "steps": 8}
        codec.save(tiny_plan(**facts), folder / "plan.json")
        view = Witness(_kill_once(3) if name == "killed" else lambda state: None)
        assert run_core(folder / "plan.json", folder, view) == 0
        found = events.all_events(folder / run_folder.EVENTS)
        runs[name] = {e.step: e.loss for e in found if isinstance(e, events.StepEvent)}
        assert len(view.said) == (name == "killed")
    assert runs["killed"] == pytest.approx(runs["undisturbed"], rel=1e-3)


def _kill_once(step: int) -> Callable[[RunState], None]:
    left = [step]

    def act(state: RunState) -> None:
        if left and state.step >= left[0]:
            left.pop()
            kill_children("qlora_core")

    return act


def test_a_real_core_that_shrank_and_died_goes_on_smaller(tmp_path: Path) -> None:
    """Memory runs out for more than 90 tokens; the process is gone after its third step."""
    model, data = save_tiny_model(tmp_path / "tiny"), write_rows(tmp_path / "rows.jsonl")
    planned = tiny_plan(model=model, data=data, output=tmp_path, steps=6)
    codec.save(planned, tmp_path / "plan.json")
    view = Witness()
    command = [sys.executable, str(Path(support.small_card.__file__)), str(tmp_path / "plan.json"), "90", "3"]
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert run_core(tmp_path / "plan.json", tmp_path, view, env, command) == 0
    assert len(view.said) == 1
    found = events.all_events(tmp_path / run_folder.EVENTS)
    (restart,) = [e for e in found if isinstance(e, events.AdaptationEvent) and e.cause == CAUSE]
    died, second = fold(found[: found.index(restart)]).limits, [e for e in found if isinstance(e, events.RunEvent)][1]
    assert died["token_budget"] < planned.execution_values().token_budget
    assert restart.before == {name: died[name] for name in restart.after}
    assert second.limits == died | restart.after != died
    assert second.limits == asdict(limits_of(codec.load(tmp_path / "plan.json", RunPlan)))
    assert view.state.done is not None
    assert view.state.limits == view.state.done.limits == second.limits
