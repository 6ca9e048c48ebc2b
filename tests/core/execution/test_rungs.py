"""The table against what it speaks of: the limits of a step, the settings, and the planner's setup."""

from dataclasses import fields

from qlora_core.execution.limits import Limits
from qlora_core.execution.rungs import FILLERS, HELD, RUNGS, SEARCHED, SIZES, SWITCHES, planned
from qlora_profiles.registry import settings
from qlora_run.planner.cost.inputs import CostInputs

NAMES = [rung.name for rung in RUNGS]


def test_every_limit_of_a_step_has_one_entry() -> None:
    assert len(NAMES) == len(set(NAMES))
    assert {field.name for field in fields(Limits)} - {"loss_kernel"} == set(NAMES)


def test_every_entry_is_a_setting_of_the_execution() -> None:
    assert all(settings()[name].scope == "execution" for name in NAMES)
    for name in (*FILLERS, *SWITCHES):
        setting = settings()[name]
        assert setting.tuned or not setting.default  # off, or none, unless the search finds a use


def test_what_is_searched_is_in_the_table() -> None:
    assert set(SEARCHED) == {rung.name for rung in RUNGS if rung.planned}
    assert len(SEARCHED) == len(set(SEARCHED))
    assert set(SIZES) & set(SWITCHES) == set()
    assert {rung.name for rung in HELD} == {"layers_dequantized", "cuda_graphs"}


def test_every_entry_says_what_a_person_reads() -> None:
    assert all(rung.down and rung.costs for rung in RUNGS)
    for name in SWITCHES:
        assert planned(name).why
        assert all(planned(name).labels)
    for name in FILLERS:
        assert planned(name).why
        assert planned(name).labels[0]


def test_what_an_entry_needs_is_something_that_the_planner_knows() -> None:
    for name in SEARCHED:
        assert all(hasattr(CostInputs, need) for need in planned(name).needs)
