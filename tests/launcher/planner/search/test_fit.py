"""Method, token budget and recomputed layers; what happens when nothing fits."""

from typing import Any

import msgspec
import pytest
from support.planning_facts import asking, card_report, cpu_report, data_of, given_values, known

from qlora_profiles.catalogue import load_profile
from qlora_profiles.codec import from_json, to_json
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.facts import ModelFacts
from qlora_profiles.hardware import Disk
from qlora_profiles.plan import Profile, Request, RunPlan, strongest
from qlora_profiles.units import GIB
from qlora_run.planner import largest_length, resolve

MODEL = known("Qwen/Qwen3-8B")


def plan_on(vram_gib: float, model: ModelFacts = MODEL, longest: int = 1804, **given_values: Any) -> RunPlan:
    return resolve(card_report(vram_gib), asking(**given_values), model, data_of(longest=longest))


def error_on(vram_gib: float, model: ModelFacts = MODEL, longest: int = 1804, **given_values: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        plan_on(vram_gib, model, longest, **given_values)
    assert "\n" not in str(caught.value)
    return caught.value


def execution(plan: RunPlan) -> tuple[int, int]:
    return plan.execution["token_budget"].value, plan.execution["layers_recomputed"].value


def test_a_plan_is_whole_and_survives_json() -> None:
    plan = plan_on(12)
    again = from_json(to_json(plan), RunPlan, "plan.json")
    assert again.recipe_digest() == plan.recipe_digest()
    assert (again.recipe_values(), again.execution_values(), again.run_values()) == (
        plan.recipe_values(),
        plan.execution_values(),
        plan.run_values(),
    )
    assert to_json(resolve(card_report(12), asking(), MODEL, data_of())) == to_json(plan)


def test_the_least_quantised_method_that_fits() -> None:
    small, large = plan_on(12).recipe["method"], plan_on(80).recipe["method"]
    assert (small.value, small.source) == ("qlora-4", "probe")
    assert small.reason.startswith("16-bit LoRA needs 17.")
    assert large.value == "lora"
    tight = plan_on(17.4, longest=300).recipe["method"]
    assert tight.value == "qlora-4"
    assert "slower" in tight.reason
    without = resolve(card_report(24, packages={"torch": "2.13.0"}), asking(), MODEL, data_of())
    assert without.recipe["method"].value == "lora"


def test_on_the_cpu_4_bits_where_they_can_be_had() -> None:
    small = known("Qwen/Qwen3-0.6B")
    chosen = {
        "none": resolve(cpu_report(), asking(), small, data_of()),
        "unused": resolve(card_report(80), asking(device="cpu"), small, data_of()),
    }
    for plan in chosen.values():
        method = plan.recipe["method"]
        assert (method.value, method.source) == ("qlora-4", "probe")
        assert "no GPU is used: 4-bit keeps RAM use" in method.reason
        assert "--method lora computes in full precision" in method.reason
    bare = resolve(msgspec.structs.replace(cpu_report(), packages={"torch": "2.13.0"}), asking(), small, data_of())
    assert bare.recipe["method"].value == "lora"
    assert bare.recipe["method"].reason.startswith("bitsandbytes is not installed")
    assert resolve(cpu_report(), asking(method="lora"), small, data_of()).recipe["method"].value == "lora"


def test_the_plan_says_what_other_values_would_do() -> None:
    plan = plan_on(24, method="qlora-4")
    budget, layers = plan.execution["token_budget"], plan.execution["layers_recomputed"]
    assert "that fit" in budget.reason
    assert "GiB less" in str(layers.if_changed)
    assert "slower" in str(layers.if_changed)
    assert str(layers.if_changed).startswith("36: ")
    assert plan_on(80, method="qlora-4").execution["layers_recomputed"].reason.startswith("everything fits")


def test_the_plan_stays_inside_the_budget() -> None:
    for vram_gib in (10, 12, 16, 24, 48):
        memory = plan_on(vram_gib).memory
        assert memory.budget_bytes is not None
        assert memory.fits
        assert memory.peak_bytes + memory.error_bytes <= vram_gib * GIB


def test_the_longest_example_counts_even_above_the_token_budget() -> None:
    plan = plan_on(24, longest=4000, max_length=4096, token_budget=512, method="qlora-4")
    assert plan.execution["token_budget"].value == 512
    layers = plan.execution["layers_recomputed"].value
    given_values = {"max_length": 4096, "method": "qlora-4", "layers_recomputed": layers}
    assert plan.memory == plan_on(24, longest=4000, token_budget=4000, **given_values).memory


def test_uncounted_rows_are_taken_to_be_as_long_as_allowed() -> None:
    short = data_of(longest=100, exact=False)
    plan = resolve(card_report(24), asking(), MODEL, short)
    assert plan.execution["token_budget"].value >= 2048
    assert any("not all rows were counted" in note for note in plan.notes)


def test_one_of_the_two_may_be_a_persons() -> None:
    budget, layers = execution(plan_on(16, token_budget=2048))
    assert budget == 2048
    assert 0 < layers < 36
    budget, layers = execution(plan_on(24, layers_recomputed=36))
    assert layers == 36
    assert budget >= 1804
    assert execution(plan_on(24, layers_recomputed=36, token_budget=4096)) == (4096, 36)


def test_a_persons_execution_that_cannot_fit_names_the_nearest_that_can() -> None:
    error = error_on(12, layers_recomputed=0)
    assert "with your layers_recomputed 0" in error.message
    assert str(error.fix).startswith("--layers-recomputed ")
    error = error_on(12, token_budget=65_536)
    assert str(error.fix).startswith("--token-budget ")
    error = error_on(12, token_budget=65_536, layers_recomputed=0, allow_recipe_change="yes")
    assert "--layers-recomputed" in str(error.fix)


def test_when_nothing_fits_the_nearest_recipes_are_named_with_their_peaks() -> None:
    error = error_on(8.5, longest=8000, max_length=8192)
    assert "Qwen3-8B with qlora-4 at 8,000 tokens needs" in error.message
    assert "of the 8.4 GiB VRAM there is" in error.message
    assert str(error.fix).startswith("--max-length ")
    assert "GiB)" in str(error.fix)
    assert "--model Qwen/Qwen3-4B (" in str(error.fix)
    for method in ("lora", "full"):
        assert str(error_on(12, method=method).fix).startswith("--method qlora-4 (")
    assert "smaller --model" in str(error_on(0.5, known("Qwen/Qwen3-0.6B")).fix)


def test_every_change_that_is_offered_works() -> None:
    for offered in str(error_on(8.5, longest=8000, max_length=8192).fix).split(" or "):
        flag, value, *_ = offered.split()
        name = flag.removeprefix("--").replace("-", "_")
        model = known(value) if name == "model" else MODEL
        given_values = {"max_length": 8192} | ({} if name == "model" else {name: value})
        assert plan_on(8.5, model, longest=8000, **given_values).memory.fits


def test_what_only_the_card_can_tell_is_planned_as_small_as_can_be() -> None:
    close: dict[str, Any] = {"longest": 8000, "max_length": 8192}
    plan = plan_on(9.2, **close)
    assert plan.memory.close
    assert not plan.memory.fits
    assert any("measured before the first step" in note for note in plan.notes)
    assert execution(plan)[1] == MODEL.num_layers
    assert plan.recipe["method"].value == "qlora-4"
    assert plan.recipe["max_length"].value == 8192
    error_on(9.2, **close, preflight="no")
    changed = plan_on(9.2, **close, allow_recipe_change="yes")
    assert changed.memory.fits
    assert changed.recipe["max_length"].value < 8192
    gib = [plan_on(size / 10, **close).memory for size in range(92, 102)]
    assert [memory.fits or memory.close for memory in gib] == [True] * len(gib)
    assert [memory.fits for memory in gib] == sorted(memory.fits for memory in gib)


def test_a_recipe_changes_only_when_that_is_allowed() -> None:
    plan = plan_on(9, longest=8000, max_length=8192, allow_recipe_change="yes")
    length = plan.recipe["max_length"]
    assert length.value < 8000
    assert length.source == "tuner"
    assert "8192 does not fit" in length.reason
    assert any(note.startswith("the recipe was changed") for note in plan.notes)
    assert plan.data.rows_cut > 0
    quantised = plan_on(12, method="lora", allow_recipe_change="yes")
    assert quantised.recipe["method"].value == "qlora-4"
    with pytest.raises(UserError):
        plan_on(2, allow_recipe_change="yes")


def test_sources_win_in_their_order() -> None:
    profile = Profile(
        name="own",
        about="",
        machine=load_profile("linux-12gb").machine,
        settings={"max_length": 512, "lora_r": 8, "epochs": 1, "method": "qlora-8"},
    )
    given = strongest(
        asking(profile=profile).given,
        given_values("config", max_length=768, epochs=2),
        given_values("cli", epochs=5, method="auto"),
    )
    plan = resolve(card_report(12), Request(given=given, profile=profile), MODEL, data_of())
    found = {name: (plan.recipe[name].value, plan.recipe[name].source) for name in ("lora_r", "max_length", "epochs")}
    assert found == {"lora_r": (8, "profile"), "max_length": (768, "config"), "epochs": (5.0, "cli")}
    assert plan.recipe["method"].source == "probe"
    assert plan.profile == "own"


def test_a_profile_of_a_larger_machine_is_refused_with_the_fitting_one() -> None:
    with pytest.raises(UserError) as caught:
        resolve(card_report(8), asking(profile=load_profile("linux-48gb")), known("Qwen/Qwen3-32B"), data_of())
    assert str(caught.value.fix).startswith("--profile linux-8gb")
    with pytest.raises(UserError, match="made for an NVIDIA card"):
        resolve(cpu_report(), asking(profile=load_profile("linux-48gb")), MODEL, data_of())


def test_checkpoints_that_are_quantised_already() -> None:
    stored = msgspec.structs.replace(MODEL, quantised="bitsandbytes 4-bit")
    assert plan_on(80, stored).recipe["method"].value == "qlora-4"
    assert "stored in bitsandbytes 4-bit" in error_on(80, stored, method="lora").message
    other = msgspec.structs.replace(MODEL, quantised="gptq")
    assert "stored quantised (gptq)" in error_on(80, other).message


def test_a_disk_that_is_too_small() -> None:
    report = card_report(24, disk=Disk(output_free_bytes=1 * GIB))
    with pytest.raises(EnvironmentProblem, match="not enough disk: the run writes"):
        resolve(report, asking(), MODEL, data_of())
    enough = card_report(24, disk=Disk(output_free_bytes=4 * GIB))
    resolve(enough, asking(), MODEL, data_of())
    with pytest.raises(EnvironmentProblem) as caught:
        resolve(enough, asking(merge="yes"), MODEL, data_of())
    assert str(caught.value.fix) == "--merge no or --output on another disk"
    tight = card_report(24, disk=Disk(output_free_bytes=int(1.5 * GIB)))
    with pytest.raises(EnvironmentProblem) as caught:
        resolve(tight, asking(), MODEL, data_of())
    assert str(caught.value.fix).startswith("--save-total-limit 1")
    resolve(tight, asking(save_total_limit=1), MODEL, data_of())


def test_no_rows_no_plan() -> None:
    with pytest.raises(UserError, match="no rows left to train on"):
        resolve(card_report(), asking(), MODEL, data_of(train_rows=0))


def test_main_memory_is_the_limit_without_a_card() -> None:
    plan = resolve(cpu_report(16), asking(), known("Qwen/Qwen3-0.6B"), data_of())
    assert plan.memory.budget_bytes == int(0.9 * 16 * GIB)
    assert plan.execution["vram_budget_bytes"].value is None
    with pytest.raises(UserError, match="memory there is"):
        resolve(cpu_report(6), asking(), MODEL, data_of())


def test_experts_are_counted_and_said_to_be_rough() -> None:
    plan = resolve(card_report(80), asking(), known("Qwen/Qwen3-30B-A3B"), data_of())
    assert any("mixture of experts" in note for note in plan.notes)
    assert plan.memory.parts[0].bytes > 50 * GIB


def test_the_longest_length_of_a_plan() -> None:
    plan = plan_on(12, method="qlora-4")
    longest = largest_length(plan)
    assert longest is not None
    assert plan_on(12, longest=longest, method="qlora-4", max_length=longest).memory.fits
    assert not plan_on(12, longest=longest + 64, method="qlora-4", max_length=longest + 64).memory.fits
    assert largest_length(plan_on(80, method="qlora-4")) == 40_960
