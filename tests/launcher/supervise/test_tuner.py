"""What a measurement changes: the run in hand, the plan on disk, and the plans to come."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import support.standin_core
from support.planning_facts import asking, card_report, data_of, known
from support.witness import Witness

from qlora_core.execution.rungs import SWITCHES
from qlora_profiles import codec, events
from qlora_profiles.facts import Ceilings
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import RunPlan, with_execution
from qlora_profiles.units import GIB, MIB
from qlora_run.machine.measurements.store import load
from qlora_run.machine.run_key import run_key
from qlora_run.machine.selftest_results import Trial, remember
from qlora_run.planner import as_measured, resolve
from qlora_run.supervise.restarts import REASON
from qlora_run.supervise.supervisor import core_command, run_core
from qlora_run.supervise.tuner import Tuner

REPORT = card_report(24, packages={"bitsandbytes": "0.50.2", "torch": "2.13.0"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "cache"))


def plan_in(folder: Path, report: HardwareReport = REPORT, **wishes: Any) -> RunPlan:
    wished = asking(**({"method": "qlora-4", "output": str(folder)} | wishes))
    plan = resolve(report, wished, known("Qwen/Qwen3-8B"), data_of())
    codec.save(plan, folder / "plan.json")
    return plan


def measured(plan: RunPlan, scale: float = 1.0, **changes: Any) -> events.MeasuredEvent:
    """A preflight in which what passes was ``scale`` times what was predicted."""
    execution = plan.execution_values()
    staying = sum(part.bytes for part in plan.memory.parts[:2])
    passing = plan.memory.peak_bytes - staying - plan.memory.parts[-1].bytes
    fields: dict[str, Any] = {
        "time_s": 1.0,
        "stage": "preflight",
        "limits": {
            "token_budget": execution.token_budget,
            "layers_recomputed": execution.layers_recomputed,
            "loss_chunk_tokens": execution.loss_chunk_tokens,
            "offload_activations": execution.offload_activations,
            "rematerialize_activations": execution.rematerialize_activations,
            "cuda_graphs": execution.cuda_graphs,
            "loss_kernel": execution.loss_kernel,
        },
        "largest_tokens": max(execution.token_budget, 1804),
        "several_micro_batches": True,
        "reserved_bytes": staying + round(scale * passing),
        "outside_bytes": 400 * MIB,
        "step_tokens": 6000.0,
        "step_seconds": plan.time.step_seconds,
    }
    return events.MeasuredEvent(**(fields | changes))


def test_more_than_predicted_makes_the_run_smaller_and_less_makes_it_larger(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, card_report(12, packages={"bitsandbytes": "0.50.2", "torch": "2.13.0"}))
    tight = json.loads(Tuner(tmp_path / "plan.json").answer(measured(plan, 1.5)))
    on_disk = codec.load(tmp_path / "plan.json", RunPlan)
    assert on_disk.recipe_digest() == plan.recipe_digest()
    assert on_disk.execution_values().layers_recomputed == tight["layers_recomputed"]
    codec.save(plan, tmp_path / "plan.json")
    roomy = json.loads(Tuner(tmp_path / "plan.json").answer(measured(plan, 0.5)))
    assert size(tight) < size(measured(plan).limits) < size(roomy)


def size(limits: dict[str, Any]) -> int:
    """What grows with memory: tokens kept by the layers that do not recompute."""
    return int(limits["token_budget"]) * (40 - int(limits["layers_recomputed"]))


def test_as_predicted_changes_nothing(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    event = measured(plan)
    assert json.loads(Tuner(tmp_path / "plan.json").answer(event)) == event.limits


@pytest.mark.parametrize("vram_gib", [12, 16])
def test_what_was_measured_to_fit_barely_is_not_left_for_its_error_bar(tmp_path: Path, vram_gib: int) -> None:
    plan = plan_in(tmp_path, card_report(vram_gib, packages={"bitsandbytes": "0.50.2", "torch": "2.13.0"}))
    budget, outside = plan.memory.budget_bytes or 0, 400 * MIB
    full = measured(plan, reserved_bytes=budget - outside - 10 * MIB, outside_bytes=outside)
    assert json.loads(Tuner(tmp_path / "plan.json").answer(full)) == full.limits
    codec.save(plan, tmp_path / "plan.json")
    too_full = measured(plan, reserved_bytes=budget - outside + 10 * MIB, outside_bytes=outside)
    assert json.loads(Tuner(tmp_path / "plan.json").answer(too_full)) != too_full.limits


def test_what_a_person_decided_stays(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, token_budget=2048)
    answer = json.loads(Tuner(tmp_path / "plan.json").answer(measured(plan, 1.3)))
    assert answer["token_budget"] == 2048
    assert answer["layers_recomputed"] > plan.execution_values().layers_recomputed


def test_the_same_run_need_not_be_measured_again(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    tuner = Tuner(tmp_path / "plan.json")
    assert not tuner.measured_before()
    tuner.answer(measured(plan))
    assert Tuner(tmp_path / "plan.json").measured_before()
    other = plan_in(tmp_path, learning_rate=1e-5)
    assert other.recipe_digest() != plan.recipe_digest()
    assert not Tuner(tmp_path / "plan.json").measured_before()


@pytest.mark.parametrize("vram_gib", [8, 24])
def test_how_slow_the_host_is_is_not_forgotten_when_another_execution_is_measured(
    tmp_path: Path, vram_gib: int
) -> None:
    """Ceilings are measured in the first round only; without them the second would go back to where it began."""
    report = card_report(vram_gib, capability=(9, 0), packages={"bitsandbytes": "0.50.2", "triton": "3.6"})
    slow_host = Ceilings(flops=6e14, copy_bytes=4e12, launch_seconds=1.5e-5)
    plan = plan_in(tmp_path, report)
    tuner = Tuner(tmp_path / "plan.json")
    first = json.loads(tuner.answer(measured(plan, ceilings=slow_host)))
    assert first != measured(plan).limits
    second = json.loads(tuner.answer(measured(tuner.plan)))
    assert {name: second[name] for name in SWITCHES} == {name: first[name] for name in SWITCHES}


def test_what_the_doctor_saw_fail_here_is_not_turned_on_by_a_measurement(tmp_path: Path) -> None:
    report = card_report(24, capability=(9, 0), packages={"bitsandbytes": "0.50.2", "triton": "3.6"})
    slow_host = Ceilings(flops=6e14, copy_bytes=4e12, launch_seconds=3e-5)
    plan = plan_in(tmp_path, report)
    assert json.loads(Tuner(tmp_path / "plan.json").answer(measured(plan, ceilings=slow_host)))["cuda_graphs"]
    codec.save(plan, tmp_path / "plan.json")
    remember(report, {"graphs": Trial(test="graphs", state="crashed", said="illegal memory access")})
    assert not json.loads(Tuner(tmp_path / "plan.json").answer(measured(plan, ceilings=slow_host)))["cuda_graphs"]


@pytest.mark.parametrize("scale", [0.96, 1.0, 1.01])
@pytest.mark.parametrize("vram_gib", [12, 16, 48])
def test_the_next_start_goes_on_with_what_was_measured(tmp_path: Path, vram_gib: int, scale: float) -> None:
    """A prediction with a measurement behind it would choose a little differently: not worth measuring that, too."""
    report = card_report(vram_gib, packages={"bitsandbytes": "0.50.2", "torch": "2.13.0"})
    plan = plan_in(tmp_path, report)
    event = measured(plan, scale)
    for _ in range(3):
        tuner = Tuner(tmp_path / "plan.json")
        answer = json.loads(tuner.answer(event))
        if answer == event.limits:
            break
        event = measured(tuner.plan, scale)
    again = as_measured(plan_in(tmp_path, with_free(report, -20 * MIB)), load(report))
    codec.save(again, tmp_path / "plan.json")
    assert Tuner(tmp_path / "plan.json").measured_before()
    assert again.memory.fits
    much_less = as_measured(plan_in(tmp_path, with_free(report, -GIB)), load(report))
    assert much_less.memory.fits


def with_free(report: HardwareReport, more_bytes: int) -> HardwareReport:
    """The machine with more or less of its card free."""
    gpu = report.gpus[0]
    assert gpu.vram_free_bytes is not None
    free = msgspec.structs.replace(gpu, vram_free_bytes=gpu.vram_free_bytes + more_bytes)
    return msgspec.structs.replace(report, gpus=(free,))


def test_what_another_version_measured_is_left_alone(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    Tuner(tmp_path / "plan.json").answer(measured(plan))
    (path,) = (tmp_path / "cache").rglob("*.json")
    path.write_text(path.read_text(encoding="utf-8").replace('"layers_dequantized"', '"layers_wide"'), "utf-8")
    assert load(REPORT).of_run(run_key(plan, plan.execution_values()))
    assert as_measured(plan, load(REPORT)) == plan


def test_what_was_measured_gives_way_to_a_person_and_to_what_is_much_faster(tmp_path: Path) -> None:
    plan = plan_in(tmp_path, token_budget=2048)
    Tuner(tmp_path / "plan.json").answer(measured(plan))
    assert as_measured(plan_in(tmp_path, token_budget=3072), load(REPORT)).execution_values().token_budget == 3072
    slow = plan_in(tmp_path, layers_recomputed=36)
    Tuner(tmp_path / "plan.json").answer(measured(slow))
    fresh = plan_in(tmp_path)
    assert as_measured(fresh, load(REPORT)).execution_values().layers_recomputed < 36


def test_after_a_death_nothing_larger_is_answered_than_what_was_measured(tmp_path: Path) -> None:
    """A card with much room left would call for the execution that died."""
    plan = plan_in(tmp_path)
    smaller = {"token_budget": plan.execution_values().token_budget // 4, "layers_recomputed": plan.model.num_layers}
    roomy = measured(with_execution(plan, smaller, REASON), 0.5)
    codec.save(with_execution(plan, smaller, "by hand"), tmp_path / "plan.json")
    assert json.loads(Tuner(tmp_path / "plan.json").answer(roomy)) != roomy.limits
    codec.save(with_execution(plan, smaller, REASON), tmp_path / "plan.json")
    tuner = Tuner(tmp_path / "plan.json")
    ran_out = msgspec.structs.replace(roomy, limits=roomy.limits | {"token_budget": 512})
    for event in (roomy, ran_out):
        assert json.loads(tuner.answer(event)) == event.limits
        on_disk = codec.load(tmp_path / "plan.json", RunPlan).execution_values()
        assert {name: getattr(on_disk, name) for name in event.limits} == event.limits


def test_measured_ceilings_scale_the_predicted_time(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    slow = Ceilings(flops=1e12, copy_bytes=1e10, launch_seconds=2e-5)
    quick = Ceilings(flops=1e15, copy_bytes=5e12, launch_seconds=2e-6)
    times = []
    for ceilings in (quick, slow):
        tuner = Tuner(tmp_path / "plan.json")
        tuner.record(measured(plan, ceilings=ceilings, step_seconds=None))
        found = resolve(REPORT, asking(method="qlora-4"), known("Qwen/Qwen3-8B"), data_of(), calibration=load(REPORT))
        times.append(found.time.step_seconds)
    assert times[0] < times[1] / 5


def test_a_core_that_measures_is_answered(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    event = measured(plan, 1.5)
    (tmp_path / "measured.json").write_text(
        json.dumps({k: v for k, v in msgspec.to_builtins(event).items() if k not in ("type", "time_s")}),
        encoding="utf-8",
    )
    view = Witness()
    env = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(Path(support.standin_core.__file__)), "measure", str(tmp_path)]
    assert run_core(tmp_path / "plan.json", tmp_path, view, env, command) == 0
    (said,) = view.state.warnings
    answer = json.loads(said.message)
    execution = codec.load(tmp_path / "plan.json", RunPlan).execution_values()
    assert answer == {name: getattr(execution, name) for name in answer}
    assert answer != event.limits
    assert load(REPORT).records[0].measurements[0].context_bytes == 400 * MIB


def test_a_measurement_that_no_execution_can_meet_leaves_the_plan_alone(tmp_path: Path) -> None:
    plan = plan_in(tmp_path)
    event = measured(plan, 1.0, outside_bytes=int(1.9 * GIB), reserved_bytes=20_000 * GIB)
    assert json.loads(Tuner(tmp_path / "plan.json").answer(event)) == event.limits


def test_a_folder_that_begins_with_a_dash_is_no_option_of_the_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("-supervised")
    folder.mkdir()
    plan_in(folder)
    command = core_command(folder / "plan.json", Tuner(folder / "plan.json"))
    assert command[:4] == [sys.executable, "-m", "qlora_core", str(tmp_path / folder / "plan.json")]
