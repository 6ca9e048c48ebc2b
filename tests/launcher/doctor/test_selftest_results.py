"""What the doctor proved is remembered for just this environment, and every plan falls back by it, with the reason."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.doctor_contexts import broke, machine, selftest_results_of
from support.measured import H200
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import Request, RunPlan
from qlora_run.machine.selftest_results import SelftestResults, Trial, environment_of, load_results, remember, store
from qlora_run.planner import default_model, resolve
from qlora_run.planner.make_plan import PlanInput, make_plan

SMALL = known("Qwen/Qwen3-0.6B")
WITH_BITS = {"bitsandbytes": "0.50.2", "triton": "3.7.0", "liger-kernel": "0.8.5"}
NO_LUCK = "RuntimeError: no luck"


def planned(*trials: Trial, report: HardwareReport | None = None, **values: Any) -> RunPlan:
    report = report or card_report(packages=WITH_BITS)
    return resolve(report, asking(**values), SMALL, data_of(), selftest_results=selftest_results_of(*trials))


# --- the cache


def test_what_was_tried_is_remembered(tmp_path: Path) -> None:
    report = machine()
    assert load_results(report, tmp_path) == SelftestResults()
    remember(report, {"nf4": broke("nf4", NO_LUCK), "varlen": Trial(test="varlen", state="ok")}, tmp_path)
    found = load_results(report, tmp_path)
    assert found.problem("nf4") == NO_LUCK
    assert found.works("varlen")
    assert not found.works("nf4")
    assert found.problem("varlen", "workers") is None
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "other",
    [
        machine(packages={"bitsandbytes": "0.51.0"}),
        machine(torch={"version": "2.13.0+cu126"}),
        machine(platform={"python": "3.13.1"}),
        msgspec.structs.replace(machine(), gpus=(msgspec.structs.replace(machine().gpus[0], driver="590.1"),)),
        machine("linux-24gb"),
    ],
)
def test_another_environment_knows_nothing(other: HardwareReport, tmp_path: Path) -> None:
    remember(machine(), {"nf4": broke("nf4")}, tmp_path)
    assert load_results(other, tmp_path) == SelftestResults()
    assert environment_of(other) != environment_of(machine())


def test_free_memory_and_temperature_are_no_other_environment(tmp_path: Path) -> None:
    warm = msgspec.structs.replace(machine().gpus[0], vram_free_bytes=1, temperature_celsius=80, processes=())
    again = machine(gpus=(warm,), disk={"output_free_bytes": 1}, memory={"ram_available_bytes": 1})
    assert environment_of(again) == environment_of(machine())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"environment": "another", "trials": {}}'])
def test_a_damaged_file_is_nothing_learned(text: str, tmp_path: Path) -> None:
    store(tmp_path).path(environment_of(machine())).write_text(text, encoding="utf-8")
    assert load_results(machine(), tmp_path) == SelftestResults()


def test_a_cache_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert remember(machine(), {}, tmp_path / "file") is None


def test_a_long_error_is_shortened() -> None:
    said = selftest_results_of(broke("nf4", "word " * 99)).problem("nf4")
    assert said is not None
    assert len(said) <= 60
    assert said.endswith("...")


# --- the plan


def test_without_trials_a_plan_is_what_it_was() -> None:
    assert planned() == resolve(card_report(packages=WITH_BITS), asking(), SMALL, data_of())


@pytest.mark.parametrize(
    ("test", "setting", "value"),
    [
        ("varlen", "attention", "sdpa"),
        ("adamw", "optimizer_kernel", "plain"),
        ("workers", "workers", 0),
        ("device", "device", "cpu"),
    ],
)
@pytest.mark.parametrize("state", ["fail", "crashed", "hung"])
def test_what_failed_is_not_planned_with(test: str, setting: str, value: Any, state: Any) -> None:
    before = planned().execution[setting]
    after = planned(broke(test, NO_LUCK, state)).execution[setting]
    assert before.value != value
    assert after.value == value
    assert after.source == "probe"
    assert NO_LUCK in after.reason
    assert len(after.reason) <= 120


@pytest.mark.parametrize(
    "test", ["nf4", "varlen", "adamw", "workers", "graphs", "triton", "dequantize", "cross_entropy", "liger", "unsloth"]
)
def test_each_fall_back_is_told_with_its_reason(test: str) -> None:
    (told,) = (note for note in planned(broke(test, NO_LUCK)).notes if NO_LUCK in note)
    assert told.endswith("(qlora-run doctor)")
    assert not any(NO_LUCK in note for note in planned().notes)


def test_what_concerns_cards_is_not_told_on_a_cpu() -> None:
    plan = planned(broke("varlen", NO_LUCK), broke("nf4", NO_LUCK), report=cpu_report())
    assert [NO_LUCK in note for note in plan.notes].count(True) == 1


def test_4_bits_that_fail_leave_16() -> None:
    failed = broke("nf4", NO_LUCK)
    large = known("Qwen/Qwen3-8B")
    results = selftest_results_of(failed)
    assert resolve(card_report(12, packages=WITH_BITS), asking(), large, data_of()).recipe["method"].value == "qlora-4"
    with pytest.raises(UserError):
        resolve(card_report(12, packages=WITH_BITS), asking(), large, data_of(), selftest_results=results)
    roomy = resolve(card_report(24, packages=WITH_BITS), asking(), large, data_of(), selftest_results=results)
    assert roomy.recipe["method"].value == "lora"
    on_cpu = planned(failed, report=cpu_report())
    assert on_cpu.recipe["method"].value == "lora"
    assert NO_LUCK in on_cpu.recipe["method"].reason
    assert default_model(card_report(12, packages=WITH_BITS), selftest_results=results).name != "Qwen/Qwen3-8B"


@pytest.mark.parametrize(
    ("test", "value", "words"),
    [
        ("nf4", {"method": "qlora-4"}, "method qlora-4: bitsandbytes failed here"),
        ("int8", {"method": "qlora-8"}, "method qlora-8: bitsandbytes failed here"),
        ("adam8bit", {"optimizer": "adamw-8bit"}, "optimizer adamw-8bit: it failed here"),
        ("liger", {"layer_kernels": "liger"}, "layer_kernels liger: a kernel failed here"),
        ("triton", {"layer_kernels": "liger"}, "layer_kernels liger: a kernel failed here"),
        ("triton", {"dequantize_kernel": "triton"}, "dequantize_kernel triton: a kernel failed here"),
        ("dequantize", {"dequantize_kernel": "triton"}, "dequantize_kernel triton: it failed here"),
        ("triton", {"loss_kernel": "triton"}, "loss_kernel triton: a kernel failed here"),
        ("cross_entropy", {"loss_kernel": "triton"}, "loss_kernel triton: our kernel failed here"),
    ],
)
def test_a_value_that_was_seen_to_fail_is_refused(test: str, value: dict[str, Any], words: str) -> None:
    planned(**value)
    with pytest.raises(EnvironmentProblem, match=words) as caught:
        planned(broke(test, NO_LUCK), **value)
    assert caught.value.fix


def test_graphs_that_were_seen_to_fail_are_not_planned_and_not_to_be_had() -> None:
    fast = card_report(gpus=(H200,), packages=WITH_BITS)
    assert planned(report=fast).execution["cuda_graphs"].value is True
    without = planned(broke("graphs", NO_LUCK), report=fast).execution["cuda_graphs"]
    assert without.value is False
    assert NO_LUCK in without.reason
    with pytest.raises(UserError, match="cuda_graphs: capturing failed here"):
        planned(broke("graphs", NO_LUCK), cuda_graphs=True)


def test_our_kernel_that_was_seen_to_fail_is_not_planned_with() -> None:
    assert planned().execution["dequantize_kernel"].value == "triton"
    after = planned(broke("dequantize", NO_LUCK)).execution["dequantize_kernel"]
    assert (after.value, after.source) == ("bitsandbytes", "probe")
    assert NO_LUCK in after.reason
    assert planned().execution["loss_kernel"].value == "triton"
    after = planned(broke("cross_entropy", NO_LUCK)).execution["loss_kernel"]
    assert (after.value, after.source) == ("chunked", "probe")
    assert NO_LUCK in after.reason


def test_a_packed_kernel_asked_for_that_was_seen_to_fail_is_refused() -> None:
    with pytest.raises(UserError, match="attention varlen: the packed kernel failed here"):
        planned(broke("varlen", NO_LUCK), attention="varlen")


def test_a_card_that_torch_refuses_is_planned_around_loudly() -> None:
    refused = Trial(test="torch", state="ok", found={"device": "cpu", "refused": "the driver is too old"})
    plan = planned(refused)
    assert plan.execution["device"].value == "cpu"
    assert plan.notes[0].startswith("PLANNED ON THE CPU although there is a NVIDIA GeForce RTX 3060")
    assert "the driver is too old" in plan.notes[0]
    working = Trial(test="torch", state="ok", found={"device": "cuda"})
    assert planned(working).execution["device"].value == "cuda"


def test_a_plan_asks_the_cache_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path))
    report = machine()
    asked = PlanInput(request=Request(), report=report, only_planning=True)
    assert make_plan(asked).execution["attention"].value == "varlen"
    remember(report, {"varlen": broke("varlen", NO_LUCK)})
    plan = make_plan(asked)
    assert plan.execution["attention"].value == "sdpa"
    assert NO_LUCK in plan.execution["attention"].reason


def test_a_backend_that_does_not_import_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path))
    failed = selftest_results_of(broke("unsloth", NO_LUCK))
    asked = PlanInput(request=asking(backend="unsloth"), report=machine(), only_planning=True, selftest_results=failed)
    with pytest.raises(EnvironmentProblem):
        make_plan(asked)
