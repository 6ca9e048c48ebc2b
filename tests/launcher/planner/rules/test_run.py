"""How often a run is saved."""

from typing import Any

import pytest
from support.planning_facts import asking, card_report, data_of, known

from qlora_run.planner import resolve


def saves_every(**values: Any) -> tuple[int, str]:
    plan = resolve(card_report(24), asking(**values), known("Qwen/Qwen3-0.6B"), data_of())
    return plan.run["save_steps"].value, plan.run["save_steps"].source


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1), (30, 3), (499, 49), (500, 50), (5000, 50)])
def test_a_run_is_saved_at_least_ten_times_and_every_fifty_steps(steps: int, every: int) -> None:
    assert saves_every(max_steps=steps)[0] == every


def test_a_person_decides_otherwise() -> None:
    assert saves_every(max_steps=30, save_steps=200) == (200, "cli")
