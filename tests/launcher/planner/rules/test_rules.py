"""What each rule decides on each kind of machine, and which given values it refuses."""

from typing import Any

import msgspec
import pytest
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError
from qlora_profiles.hardware import Gpu, HardwareReport, Platform, Torch
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB
from qlora_run.planner import resolve
from qlora_run.planner.backends import backend_reasons

SMALL = known("Qwen/Qwen3-0.6B")
UNSLOTH_READY = {
    "transformers": "5.17.0",
    "trl": "1.15.0",
    "datasets": "4.8.5",
    "unsloth": "2026.10.9",
    "unsloth_zoo": "2026.10.9",
    "triton": "3.7.0",
}
BITSANDBYTES = {"bitsandbytes": "0.50.2"}


def planned(report: HardwareReport, **given_values: Any) -> RunPlan:
    return resolve(report, asking(**given_values), SMALL, data_of())


def chosen(report: HardwareReport, name: str, **given_values: Any) -> Any:
    return planned(report, **given_values).execution[name].value


def refused(report: HardwareReport, **given_values: Any) -> QloraRunError:
    with pytest.raises(QloraRunError) as caught:
        planned(report, **given_values)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return caught.value


def changed(report: HardwareReport, **changes: Any) -> HardwareReport:
    return msgspec.structs.replace(report, **changes)


OLD_CARD = card_report(capability=(7, 5))
WINDOWS = card_report(system="windows")
WSL = card_report(platform=Platform(system="linux", wsl=True))


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (card_report(), ("cuda", "bfloat16", "varlen", "fused", True, True, 4)),
        (OLD_CARD, ("cuda", "float16", "sdpa", "fused", True, True, 4)),
        (WINDOWS, ("cuda", "bfloat16", "varlen", "fused", False, False, 0)),
        (WSL, ("cuda", "bfloat16", "varlen", "fused", False, False, 4)),
        (cpu_report(), ("cpu", "float32", "sdpa", "fused", False, False, 0)),
        (load_machine("macos-m3"), ("cpu", "float32", "sdpa", "fused", False, False, 0)),
    ],
)
def test_what_follows_from_the_machine(report: HardwareReport, expected: tuple[Any, ...]) -> None:
    plan = planned(report)
    names = (
        "device",
        "compute_dtype",
        "attention",
        "optimizer_kernel",
        "pin_memory",
        "expandable_segments",
        "workers",
    )
    assert tuple(plan.execution[name].value for name in names) == expected


def test_every_setting_has_a_value_a_source_and_a_reason() -> None:
    for report in (card_report(), cpu_report(), WINDOWS):
        plan = planned(report, lora_r=8)
        for resolved in (*plan.recipe.values(), *plan.execution.values(), *plan.run.values()):
            assert resolved.reason
            assert len(resolved.reason) <= 120
        assert plan.recipe["lora_r"].source == "cli"
        assert plan.recipe_values().lora_r == 8


def test_a_cpu_build_of_torch_beside_a_card_is_said_loudly() -> None:
    plan = planned(load_machine("windows-cpu-torch"))
    assert plan.execution["device"].value == "cpu"
    assert "2.13.0+cpu is not a CUDA build" in plan.execution["device"].reason
    assert plan.notes[0].startswith("PLANNED ON THE CPU")
    assert "doctor" in plan.notes[0]
    assert not any(note.startswith("PLANNED") for note in planned(cpu_report()).notes)
    error = refused(load_machine("windows-cpu-torch"), device="cuda")
    assert isinstance(error, EnvironmentProblem)
    assert "doctor" in str(error.fix)


def test_cards_of_other_makers_are_named() -> None:
    amd = card_report(gpus=(Gpu(name="Radeon", vendor="amd"),), torch=Torch(version="2.13.0", build="rocm"))
    assert "AMD" in planned(amd).execution["device"].reason
    assert planned(amd, device="cpu").execution["device"].reason == "you asked for it"
    assert "not built for it" in refused(amd, device="mps").message


def test_the_first_of_several_cards_is_used_and_a_roomier_one_named() -> None:
    first, second = (
        Gpu(name=f"RTX 309{i}", index=i, vram_total_bytes=24 * GIB, vram_free_bytes=free * GIB, capability=(8, 6))
        for i, free in ((0, 10), (1, 23))
    )
    plan = planned(card_report(gpus=(first, second)))
    assert plan.execution["vram_budget_bytes"].value < 10 * GIB
    assert "--devices 1" in plan.notes[0]


def test_the_budget_leaves_room_for_the_desktop() -> None:
    free = card_report().gpus[0]
    drawing = msgspec.structs.replace(free, drives_display=True)
    unknown = msgspec.structs.replace(free, drives_display=None)

    def budget(system: str, gpu: Gpu) -> int:
        value = chosen(card_report(system=system, gpus=(gpu,)), "vram_budget_bytes")
        assert isinstance(value, int)
        return value

    assert 12 * GIB > budget("linux", free) > budget("linux", drawing) > budget("windows", drawing)
    assert budget("linux", free) > budget("windows", free) > budget("windows", drawing)
    assert budget("windows", unknown) == budget("windows", drawing)
    assert budget("linux", unknown) == budget("linux", free)


def test_room_left_for_others_replaces_the_reserve() -> None:
    resolved = planned(card_report(), leave_free_bytes=4 * GIB).execution["vram_budget_bytes"]
    assert resolved.value == 8 * GIB
    assert resolved.reason == "12.0 GiB free, 4.0 GiB left free as asked"
    assert chosen(card_report(), "vram_budget_bytes", leave_free_bytes=0) == 12 * GIB
    drawing = msgspec.structs.replace(card_report().gpus[0], drives_display=True)
    assert chosen(card_report(gpus=(drawing,)), "vram_budget_bytes", leave_free_bytes=GIB) == 11 * GIB
    both = refused(card_report(), leave_free_bytes=GIB, vram_budget_bytes=8 * GIB)
    assert "--leave-free" in str(both.fix)


def test_a_card_whose_memory_cannot_be_read_still_gets_a_plan() -> None:
    blind = msgspec.structs.replace(card_report().gpus[0], vram_total_bytes=None, vram_free_bytes=None)
    plan = planned(card_report(gpus=(blind,)))
    assert plan.memory.budget_bytes is None
    assert any("whether the plan fits is not known" in note for note in plan.notes)
    total_only = msgspec.structs.replace(blind, vram_total_bytes=10 * GIB)
    assert planned(card_report(gpus=(total_only,))).memory.budget_bytes == 9 * GIB - int(0.1 * GIB)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("unsloth", "runs wherever torch runs"),
        ("unsloth_zoo", "unsloth: unsloth_zoo is missing"),
        ("triton", "unsloth: Triton is missing"),
        (None, "--backend unsloth"),
    ],
)
def test_the_plan_says_whether_unsloth_could_run(missing: str | None, reason: str) -> None:
    packages = {name: version for name, version in (UNSLOTH_READY | BITSANDBYTES).items() if name != missing}
    report = card_report(packages=packages)
    plan = resolve(report, asking(), SMALL, data_of(), backends=backend_reasons(report))
    assert plan.execution["backend"].value == "peft"
    assert reason in plan.execution["backend"].reason


def test_unsloth_is_used_where_it_is_asked_for_and_whole() -> None:
    ready = card_report(packages=UNSLOTH_READY | BITSANDBYTES)
    asked = asking(backend="unsloth")
    assert (
        resolve(ready, asked, SMALL, data_of(), backends=backend_reasons(ready)).execution_values().backend == "unsloth"
    )
    old = card_report(packages=UNSLOTH_READY | BITSANDBYTES | {"transformers": "5.18.1"})
    with pytest.raises(EnvironmentProblem, match=r"needs transformers<=5\.17\.0; 5\.18\.1 is here"):
        resolve(old, asked, SMALL, data_of(), backends=backend_reasons(old))
    for value, words in (({"lora_dropout": 0.1}, "no dropout"), ({"method": "full"}, "qlora-4 and lora only")):
        with pytest.raises(UserError, match=words):
            resolve(ready, asking(backend="unsloth", **value), SMALL, data_of(), backends=backend_reasons(ready))


def test_a_broken_or_unknown_backend_is_refused() -> None:
    ready = card_report(packages=UNSLOTH_READY | BITSANDBYTES)
    with pytest.raises(UserError, match="not installed; there is peft"):
        planned(ready, backend="other")
    with pytest.raises(EnvironmentProblem, match="its plugin is broken"):
        resolve(ready, asking(backend="own"), SMALL, data_of(), backends={"peft": None, "own": "its plugin is broken"})


@pytest.mark.parametrize(
    ("report", "given_values", "words", "fix"),
    [
        (OLD_CARD, {"compute_dtype": "bfloat16"}, "capability 7.5", "--compute-dtype float16"),
        (cpu_report(), {"compute_dtype": "float16"}, "float32 or bfloat16", "--compute-dtype float32"),
        (OLD_CARD, {"attention": "varlen"}, "capability 8.0", "--attention sdpa"),
        (cpu_report(), {"attention": "varlen"}, "NVIDIA card", "--attention sdpa"),
        (card_report(), {"attention": "flash"}, "flash-attn is not installed", "--attention auto"),
        (card_report(), {"loss_kernel": "triton"}, "Triton is missing", "--loss-kernel chunked"),
        (WINDOWS, {"expandable_segments": "yes"}, "not available on Windows", "--expandable-segments no"),
        (card_report(), {"layers_recomputed": 99}, "has 28 layers", "--layers-recomputed 28"),
        (card_report(), {"max_length": 50_000}, "reads at most 40,960", "--max-length 40960"),
        (card_report(), {"target_modules": "nope"}, "has no layer nope", "--target-modules all-linear"),
        (card_report(), {"vram_budget_bytes": 99 * GIB}, "of a card with 12.0 GiB", "--vram-budget-bytes auto"),
        (
            card_report(packages={"torch": "2.13.0"}),
            {"method": "qlora-4"},
            "bitsandbytes is not installed",
            "pip install",
        ),
    ],
)
def test_given_values_that_cannot_work(
    report: HardwareReport, given_values: dict[str, Any], words: str, fix: str
) -> None:
    error = refused(report, **given_values)
    assert words in error.message
    assert str(error.fix).startswith(fix)


def test_old_torch_lacks_the_packed_kernel() -> None:
    old = card_report(torch=Torch(version="2.9.1+cu128", build="cuda"))
    assert chosen(old, "attention") == "sdpa"


def test_wishes_that_are_doubtful_are_kept_with_a_note() -> None:
    plan = planned(WINDOWS, optimizer_kernel="paged")
    assert plan.execution["optimizer_kernel"].value == "paged"
    assert any("not known to work" in note for note in plan.notes)
    full = planned(card_report(24), method="full")
    assert any("learning rate of an adapter" in note for note in full.notes)
    busy = msgspec.structs.replace(card_report().gpus[0], vram_free_bytes=6 * GIB)
    more = planned(card_report(gpus=(busy,)), vram_budget_bytes=8 * GIB)
    assert more.execution["vram_budget_bytes"].value == 8 * GIB
    assert any("more than is free now" in note for note in more.notes)


def test_capped_attention_scores_are_never_packed() -> None:
    plan = resolve(card_report(24), asking(), known("google/gemma-2-2b"), data_of(longest=512))
    assert plan.execution["attention"].value == "sdpa"
    assert "caps its attention scores" in plan.execution["attention"].reason


def test_logits_that_only_the_model_makes_are_whole() -> None:
    own = msgspec.structs.replace(SMALL, own_logits=True)
    plan = resolve(card_report(), asking(), own, data_of())
    assert plan.execution["loss_kernel"].value == "logits"
    assert "in its own way" in plan.execution["loss_kernel"].reason
    usual = planned(card_report())
    assert plan.memory.peak_bytes > usual.memory.peak_bytes or plan.execution != usual.execution


def test_max_length_follows_the_data_and_the_model() -> None:
    def length(**data: Any) -> tuple[int, str]:
        resolved = resolve(card_report(), asking(), SMALL, data_of(**data)).recipe["max_length"]
        return resolved.value, resolved.reason

    assert length(longest=300) == (320, "covers 100% of rows (the longest has 300 tokens)")
    value, reason = length(longest=9000, mean=900)
    assert value == 2048
    assert "covers 56% of rows whole" in reason
    assert length(longest=300, exact=False)[0] == 2048
    short = resolve(card_report(), asking(), known("google/gemma-2-2b"), data_of(longest=20_000))
    assert short.recipe["max_length"].value == 2048


def test_rows_are_tokenised_by_several_processes_only_when_there_are_many() -> None:
    many = data_of(rows=100_000)
    assert resolve(card_report(), asking(), SMALL, many).execution["dataset_workers"].value == 4
    assert resolve(WINDOWS, asking(), SMALL, many).execution["dataset_workers"].value == 0
    assert chosen(card_report(), "dataset_workers") == 0


def test_the_output_folder_is_named_after_the_model() -> None:
    assert planned(card_report()).run["output"].value == "runs/qwen3-0.6b"
    assert planned(card_report(), output="here").run["output"].value == "here"
