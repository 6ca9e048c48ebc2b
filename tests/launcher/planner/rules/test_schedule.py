"""A schedule that a plan takes is one that transformers computes, for every step of the run and the one behind."""

from typing import Any

import pytest
import torch
from transformers import get_scheduler

from qlora_profiles.errors import UserError
from qlora_run.planner.rules.schedule import check_schedule


def given(**changed: Any) -> dict[str, Any]:
    return {"lr_scheduler": "polynomial", "learning_rate": 2e-4, "warmup_ratio": 0.0, "warmup_steps": None} | changed


def computed(name: str, rate: float, warming: int, steps: int) -> bool:
    try:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warming, num_training_steps=steps)
        for _ in range(steps):
            optimizer.step()
            schedule.step()
    except (ZeroDivisionError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", ["polynomial", "cosine", "linear", "cosine_with_restarts", "inverse_sqrt"])
@pytest.mark.parametrize("rate", [1e-8, 1e-7, 2e-4])
@pytest.mark.parametrize(("warming", "steps"), [(0, 1), (1, 1), (5, 1), (3, 4), (4, 4)])
def test_what_is_taken_is_computed_and_what_is_refused_is_not(name: str, rate: float, warming: int, steps: int) -> None:
    values = given(lr_scheduler=name, learning_rate=rate, warmup_steps=warming)
    try:
        check_schedule(steps, values.__getitem__)
        taken = True
    except UserError:
        taken = False
    assert taken == computed(name, rate, warming, steps)


def test_the_way_on_is_the_setting_that_was_given() -> None:
    with pytest.raises(UserError, match="takes the only step") as caught:
        check_schedule(1, given(warmup_ratio=0.03).__getitem__)
    assert caught.value.fix == "--warmup-ratio 0"
    with pytest.raises(UserError, match="takes all 7 steps") as caught:
        check_schedule(7, given(warmup_steps=7).__getitem__)
    assert caught.value.fix == "--warmup-steps 0"
