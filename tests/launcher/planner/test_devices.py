"""Which card a plan is made for, on a machine with two unlike ones."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_core.session.environment import set_environment
from qlora_profiles.codec import from_json, to_json
from qlora_profiles.errors import QloraRunError
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.plan import RunPlan
from qlora_profiles.registry import lookup, parse
from qlora_profiles.units import GIB
from qlora_run.machine.measurements.records import machine_of
from qlora_run.planner import default_model, resolve
from qlora_run.runs.profile_of import profile_of
from qlora_run.terminal.plan_diff import plan_diff_text

MODEL = known("Qwen/Qwen3-0.6B")


def card(number: int, name: str, gib: int, capability: tuple[int, int]) -> Gpu:
    size = gib * GIB
    return Gpu(
        name=name,
        index=number,
        uuid=f"GPU-{number}",
        vram_total_bytes=size,
        vram_free_bytes=size,
        capability=capability,
    )


OLD, NEW = card(0, "Tesla T4", 15, (7, 5)), card(1, "NVIDIA GeForce RTX 4090", 24, (8, 9))
BOTH = card_report(gpus=(OLD, NEW))


def planned(report: HardwareReport = BOTH, **values: Any) -> RunPlan:
    return resolve(report, asking(**values), MODEL, data_of())


def refused(report: HardwareReport = BOTH, **values: Any) -> str:
    with pytest.raises(QloraRunError) as caught:
        planned(report, **values)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


def choices(plan: RunPlan) -> dict[str, Any]:
    """What was decided, but for the card's number."""
    every = {**plan.recipe, **plan.execution, **plan.run}
    return {name: resolved.value for name, resolved in every.items() if name != "devices"}


def test_the_second_card_is_planned_for_as_if_it_were_alone() -> None:
    chosen, alone = planned(devices=(1,)), planned(card_report(gpus=(NEW,)))
    assert choices(chosen) == choices(alone)
    assert (chosen.memory, chosen.time) == (alone.memory, alone.time)
    assert chosen.cards() == (NEW,)
    assert NEW.name in chosen.execution["device"].reason
    assert choices(planned()) == choices(planned(card_report(gpus=(OLD,)))) != choices(chosen)


def test_the_note_names_the_card_that_is_used() -> None:
    assert "uses the first; card 1 has 9.0 GiB more free (--devices 1)" in planned().notes[0]
    assert planned(devices=(1,)).notes[0] == "2 cards: this plan uses card 1"


def test_without_a_card_there_is_none_to_choose() -> None:
    assert planned(cpu_report()).execution_values().devices == ()
    on_cpu = planned(device="cpu")
    assert (on_cpu.execution_values().devices, on_cpu.cards()) == ((), ())
    assert "the cpu computes" in refused(device="cpu", devices=(1,))


@pytest.mark.parametrize(
    ("devices", "said"),
    [((2,), "no card 2"), ((0, 1), "one card trains"), ((), "one card trains"), ((1, 5), "no card 5")],
)
def test_cards_that_cannot_be_are_refused(devices: tuple[int, ...], said: str) -> None:
    assert said in refused(devices=devices)


@pytest.mark.parametrize("raw", ["1", 1, [1], ["1"]])
def test_a_card_is_named_by_its_number(raw: Any) -> None:
    assert parse(lookup("devices"), raw) == (1,)


@pytest.mark.parametrize("raw", ["cuda:1", "-1", True, [1.5]])
def test_what_is_no_number_is_refused(raw: Any) -> None:
    with pytest.raises(QloraRunError, match="devices: "):
        parse(lookup("devices"), raw)


def test_what_is_kept_of_a_machine_is_of_the_chosen_card() -> None:
    plan = planned(devices=(1,))
    machines = [machine_of(BOTH, devices) for devices in ((0,), (1,), (7,))]
    assert [machine and machine.cards[0].name for machine in machines] == [OLD.name, NEW.name, None]
    profile = profile_of(plan, "mine")
    assert (profile.machine.vram_gib, "devices" in profile.settings) == (24, False)
    assert NEW.name in profile.about
    assert default_model(BOTH, devices=(1,)).name == default_model(card_report(gpus=(NEW,))).name


def test_a_plan_read_back_is_the_same() -> None:
    plan = planned(devices=(1,))
    again = from_json(to_json(plan), RunPlan, "plan.json")
    assert again.cards() == plan.cards()
    assert "execution: the same" in plan_diff_text(again, plan)
    assert "devices 0 -> 1" in plan_diff_text(planned(), plan)


def test_the_core_sees_the_plans_cards_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    set_environment(planned(card_report(gpus=(NEW,))))
    set_environment(planned(device="cpu"))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    for _ in range(2):  # a child of the core says it once more
        set_environment(planned(devices=(1,)))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-1"


@pytest.mark.parametrize(("listed", "expected"), [(None, "1"), ("", "1"), ("2,3", "3"), ("2, 5", "5")])
def test_cards_without_an_identity_are_shown_as_the_variable_named_them(listed: str | None, expected: str) -> None:
    nameless = tuple(msgspec.structs.replace(gpu, uuid=None) for gpu in (OLD, NEW))
    report = card_report(gpus=nameless, cuda_visible_devices=listed)
    assert report.showing((1,)) == expected
    assert report.showing((0, 1)) is None


def test_an_older_plan_is_for_the_first_card(tmp_path: Path) -> None:
    plan = planned()
    execution = {name: resolved for name, resolved in plan.execution.items() if name != "devices"}
    assert msgspec.structs.replace(plan, execution=execution).cards() == (OLD,)
