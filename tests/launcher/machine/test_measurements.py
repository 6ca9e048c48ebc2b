"""Measurements of earlier runs: what they change in a plan, and a cache that never stops anybody."""

import json
import multiprocessing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from support.calibrations import record_often
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB, MIB
from qlora_run.machine.measurements.records import (
    FIRST_SHARE,
    MOST_MEASUREMENTS,
    SMALLEST_BYTES,
    SMALLEST_SHARE,
    Calibration,
    Fitted,
    Kernels,
    Measurement,
    Record,
    fitted,
    machine_of,
)
from qlora_run.machine.measurements.store import load, store
from qlora_run.machine.run_key import run_key
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner import resolve
from qlora_run.planner.cost.cuda_overhead import CONTEXT_GIB, UNCERTAIN_STAYING
from qlora_run.planner.cost.estimate import estimate_memory
from qlora_run.planner.observe import Measured, calibrated_by, record

MODEL = known("Qwen/Qwen3-8B")
REPORT = card_report(24, packages={"bitsandbytes": "0.50.2", "torch": "2.13.0"})


def plan_on(report: HardwareReport = REPORT, calibration: Calibration | None = None) -> RunPlan:
    return resolve(report, asking(method="qlora-4"), MODEL, data_of(), calibration=calibration)


def measured(plan: RunPlan, passing_scale: float = 1.0, step_seconds: float | None = None) -> Measured:
    """A run that held ``passing_scale`` times what was predicted to pass, in a context of 300 MiB."""
    execution = plan.execution_values()
    staying = sum(part.bytes for part in plan.memory.parts[:2])
    passing = sum(part.bytes for part in plan.memory.parts[2:])
    context = int(dict(CONTEXT_GIB)[8, 6] * 2**30)
    return Measured(
        execution=execution,
        largest_tokens=max(execution.token_budget, 1804),
        several_micro_batches=True,
        reserved_bytes=staying + round(passing_scale * (passing - context)),
        outside_bytes=300 * MIB,
        step_tokens=plan.data.mean_tokens * plan.recipe_values().examples_per_step,
        step_seconds=step_seconds,
    )


def test_a_run_calibrates_the_next_plan(tmp_path: Path) -> None:
    before = plan_on()
    passing = measured(before).reserved_bytes - sum(part.bytes for part in before.memory.parts[:2])
    path = record(before, measured(before, 1.05, 2 * before.time.step_seconds), tmp_path)
    assert path is not None
    calibration = load(REPORT, tmp_path)
    assert calibration.notes == ()
    after = plan_on(calibration=calibration)
    assert after.memory.calibrated
    assert after.memory.error_bytes < before.memory.error_bytes
    assert after.time.basis == "measured on this card"
    assert after.time.measured_scale == pytest.approx(2.0, rel=0.01)
    found = calibration.of(Kernels.of(before.execution_values()))
    assert found is not None
    assert found.context_bytes == 300 * MIB
    assert found.scale * passing + found.offset_bytes == pytest.approx(1.05 * passing, rel=0.005)
    assert 1 < found.scale < 1.05, "some of it may be there whatever passes"
    assert found.measurements == 1


def test_only_a_runs_own_measurement_has_what_stays_in_it(tmp_path: Path) -> None:
    """Another run of the machine has other weights: how well those are counted says nothing of these."""
    plan = plan_on()
    record(plan, measured(plan), tmp_path)
    targets = discover_targets(plan.model, ("all-linear",))

    def error_bytes(calibration: Calibration) -> int:
        settings = plan.recipe_values(), plan.execution_values()
        return estimate_memory(plan.model, targets, *settings, 2048, report=REPORT, calibration=calibration).error_bytes

    own, others = error_bytes(calibrated_by(plan, measured(plan))), error_bytes(load(REPORT, tmp_path))
    staying = sum(part.bytes for part in plan.memory.parts[:2])
    assert others - own == pytest.approx(UNCERTAIN_STAYING * staying, rel=0.05)
    ((_, again),) = load(REPORT, tmp_path).of_run(run_key(plan, plan.execution_values()))
    assert error_bytes(again) == own


def test_a_calibrated_plan_is_measured_against_the_bare_prediction(tmp_path: Path) -> None:
    """Else a second run on the same card would cancel what the first one found."""
    first = plan_on()
    record(first, measured(first, 1.1, 2 * first.time.step_seconds), tmp_path)
    second = plan_on(calibration=load(REPORT, tmp_path))
    same = measured(first, 1.1, second.time.step_seconds)
    record(second, replace(same, execution=second.execution_values()), tmp_path)
    found = load(REPORT, tmp_path).of(Kernels.of(first.execution_values()))
    assert found is not None
    assert found.measurements == 2
    assert found.speed_scale == pytest.approx(2.0, rel=0.01)


def test_what_is_measured_holds_for_the_same_machine_and_kernels_only(tmp_path: Path) -> None:
    plan = plan_on()
    record(plan, measured(plan), tmp_path)
    assert load(REPORT, tmp_path).records
    for other in (
        card_report(24, packages={"bitsandbytes": "0.51.0"}),
        card_report(24, gpus=(msgspec.structs.replace(REPORT.gpus[0], driver="999.1"),), packages=REPORT.packages),
        cpu_report(),
    ):
        assert not load(other, tmp_path).records
    sdpa = msgspec.structs.replace(plan.execution_values(), attention="sdpa")
    assert load(REPORT, tmp_path).of(Kernels.of(sdpa)) is None


def test_the_error_bar_follows_the_spread() -> None:
    machine, kernels = machine_of(REPORT), Kernels.of(plan_on().execution_values())
    assert machine is not None

    def error_bytes(*ratios: float) -> float:
        found = line_of(*((10 * GIB, int(10 * GIB * ratio)) for ratio in ratios))
        return found.uncertain_share * 10 * GIB + found.uncertain_bytes

    least = SMALLEST_SHARE * 10 * GIB + SMALLEST_BYTES
    assert error_bytes(1.0) == pytest.approx(FIRST_SHARE * 10 * GIB + SMALLEST_BYTES)
    assert error_bytes(1.0, 1.0, 1.0) == pytest.approx(least)
    assert error_bytes(1.0, 1.0, 1.02) == pytest.approx(least, rel=0.2)
    assert error_bytes(1.0, 1.0, 1.08) > 4 * least
    assert fitted(Record(machine=machine, kernels=kernels)) is None


def line_of(*pairs: tuple[int, int]) -> Fitted:
    """What follows from pairs of predicted and measured passing memory."""
    machine, kernels = machine_of(REPORT), Kernels.of(plan_on().execution_values())
    assert machine is not None
    measurements = tuple(
        Measurement(context_bytes=1, predicted_passing_bytes=predicted, measured_passing_bytes=measured)
        for predicted, measured in pairs
    )
    found = fitted(Record(machine=machine, kernels=kernels, measurements=measurements))
    assert found is not None
    return found


def test_a_step_in_which_little_passes_says_little_of_one_in_which_much_does() -> None:
    """A fifth less of half a gibibyte is not a fifth less of thirty."""
    small = line_of((GIB // 2, int(0.8 * GIB / 2)))
    assert small.scale > 0.99
    assert small.scale * GIB / 2 + small.offset_bytes < 0.84 * GIB / 2
    large = line_of((30 * GIB, 33 * GIB))
    assert large.scale * 30 * GIB + large.offset_bytes == pytest.approx(33 * GIB, rel=0.01)
    assert large.scale > 1.08


def test_several_measurements_tell_a_share_from_what_is_always_there() -> None:
    sizes = [GIB, 4 * GIB, 16 * GIB, 30 * GIB]
    found = line_of(*((size, int(1.06 * size) + 300 * MIB) for size in sizes))
    assert found.scale == pytest.approx(1.06, abs=0.01)
    assert found.offset_bytes == pytest.approx(300 * MIB, abs=60 * MIB)


def test_old_measurements_are_forgotten(tmp_path: Path) -> None:
    plan = plan_on()
    for _ in range(MOST_MEASUREMENTS + 3):
        record(plan, measured(plan), tmp_path)
    assert len(load(REPORT, tmp_path).records[0].measurements) == MOST_MEASUREMENTS


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"schema": 2}', '{"machine": 1}', "\x00\x01"])
def test_a_damaged_file_is_a_note_and_no_error(tmp_path: Path, damage: str) -> None:
    plan = plan_on()
    path = record(plan, measured(plan), tmp_path)
    assert path is not None
    path.write_text(damage, encoding="utf-8")
    calibration = load(REPORT, tmp_path)
    assert calibration.records == ()
    assert str(path) in calibration.notes[0]
    assert any("measurements left out" in note for note in plan_on(calibration=calibration).notes)
    assert record(plan, measured(plan), tmp_path) == path
    assert len(load(REPORT, tmp_path).records) == 1


def test_a_foreign_file_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    plan = plan_on()
    path = record(plan, measured(plan), tmp_path)
    assert path is not None
    foreign = json.loads(path.read_text(encoding="utf-8"))
    foreign["machine"]["cards"][0]["name"] = "another card"
    path.write_text(json.dumps(foreign), encoding="utf-8")
    assert load(REPORT, tmp_path).records == ()


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    plan = plan_on()
    assert record(plan, measured(plan), file / "below") is None
    assert load(REPORT, file / "below") == Calibration()


def test_what_makes_no_sense_is_not_recorded(tmp_path: Path) -> None:
    plan = plan_on()
    assert record(plan, replace(measured(plan), outside_bytes=0), tmp_path) is None
    assert record(plan, replace(measured(plan), outside_bytes=2**33), tmp_path) is None
    on_cpu = resolve(cpu_report(), asking(), known("Qwen/Qwen3-0.6B"), data_of())
    assert record(on_cpu, replace(measured(plan), execution=on_cpu.execution_values()), tmp_path) is None


def test_the_cache_folder_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "mine"))
    plan = plan_on()
    path = record(plan, measured(plan))
    assert path is not None
    assert path.parent == store().folder
    assert path.is_relative_to(tmp_path / "mine")
    assert load(REPORT).records
    monkeypatch.delenv("QLORA_RUN_CACHE")
    assert "qlora-run" in str(store().folder)


def test_two_launchers_at_once_lose_no_measurement_and_tear_no_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    plan, times = plan_on(), MOST_MEASUREMENTS // 2
    contexts = 200 * MIB, 400 * MIB
    processes = [
        context.Process(
            target=record_often, args=(plan, replace(measured(plan), outside_bytes=outside), str(tmp_path), times)
        )
        for outside in contexts
    ]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        assert load(REPORT, tmp_path).notes == ()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (found,) = load(REPORT, tmp_path).records
    assert sorted(m.context_bytes for m in found.measurements) == sorted(contexts * times)
    assert len(list(tmp_path.glob("*.json"))) == 1
    assert not list(tmp_path.glob("*.part"))
