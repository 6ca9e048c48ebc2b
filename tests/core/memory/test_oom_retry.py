"""Work beside a step that finds no room at first, above all the optimizer's."""

from typing import Any

import pytest
import torch

from qlora_core.memory.oom_retry import retry_optimizer_step
from qlora_profiles.errors import EnvironmentProblem

CPU = torch.device("cpu")
FULL = torch.OutOfMemoryError("CUDA out of memory")


def step_with(
    monkeypatch: pytest.MonkeyPatch, failing: list[int], error: Exception = FULL, gives: int = 0
) -> list[torch.Tensor]:
    """The values after one real AdamW step in which the allocations of state named by number fail.

    ``gives`` is how often room can be made.
    """
    parameters = [torch.nn.Parameter(torch.arange(4.0) + i) for i in range(3)]
    for parameter in parameters:
        parameter.grad = torch.ones(4)
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    rooms = iter([True] * gives)
    retry_optimizer_step(optimizer, CPU, lambda: next(rooms, False))
    real, made = torch.zeros_like, 0

    def zeros_like(*args: Any, **kwargs: Any) -> Any:
        nonlocal made
        made += 1
        if made in failing:
            raise error
        return real(*args, **kwargs)

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)  # it wraps the step once more
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros_like", zeros_like)
        optimizer.step()
    scheduler.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("failing", [1, 2, 3, 6])
def test_a_step_without_room_for_its_state_is_tried_again(monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
    expected = step_with(monkeypatch, [])
    found = step_with(monkeypatch, [failing])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_it_is_tried_once_more_each_time_that_room_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = step_with(monkeypatch, [])
    found = step_with(monkeypatch, [1, 2, 3], gives=2)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(EnvironmentProblem):
        step_with(monkeypatch, [1, 2, 3], gives=1)


def test_a_step_that_never_finds_room_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentProblem, match="out of memory beside a step") as caught:
        step_with(monkeypatch, list(range(1, 99)))
    assert caught.value.fix is not None
    assert "--lora-r" in caught.value.fix


def test_another_error_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="something else"):
        step_with(monkeypatch, [1], ValueError("something else"))
