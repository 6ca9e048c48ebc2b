"""What a plan says beside its values: settings of the recipe that somebody gave and that change nothing."""

from typing import Any

import pytest
from support.planning_facts import asking, card_report, data_of, known

from qlora_run.planner import resolve

MODEL = known("Qwen/Qwen3-0.6B")


def told(**given: Any) -> list[str]:
    notes = resolve(card_report(), asking(**given), MODEL, data_of()).notes
    return [note.removeprefix("NOT USED: ").partition(":")[0] for note in notes if note.startswith("NOT USED")]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"method": "full", "lora_r": 8, "lora_dropout": 0.1}, ["lora_r, lora_dropout"]),
        ({"method": "lora", "quant_type": "fp4"}, ["quant_type"]),
        ({"lr_scheduler": "constant", "warmup_ratio": 0.1}, ["warmup_ratio"]),
        ({"warmup_ratio": 0.1, "warmup_steps": 5}, ["warmup_ratio"]),
        ({"epochs": 2.0, "max_steps": 7}, ["epochs"]),
        ({"val_size": 0.0, "keep": "best"}, ["keep"]),
    ],
)
def test_a_setting_that_changes_nothing_is_told(given: dict[str, Any], names: list[str]) -> None:
    assert told(**given) == names


@pytest.mark.parametrize(
    "given",
    [
        {"method": "qlora-4", "lora_r": 8, "quant_type": "fp4", "double_quant": False},
        {"lr_scheduler": "constant_with_warmup", "warmup_ratio": 0.1},
        {"lr_scheduler": "constant", "val_size": 0.0, "max_steps": 7},
    ],
)
def test_settings_that_act_or_that_nobody_gave_are_not(given: dict[str, Any]) -> None:
    assert told(**given) == []
