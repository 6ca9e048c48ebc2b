"""The harness for kernels: what differs is found, what fails is left out and said in one line."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from qlora_core.kernels.trial import agree, attempt, by_norm, by_value, random_inputs, require_close, require_same
from qlora_core.session.fallback import DISAGREES, Unsuited

CPU = torch.device("cpu")
NOT_A_NUMBER = float("nan")


def inputs(*widths: int) -> list[Tensor]:
    return random_inputs([(4, width) for width in widths], CPU, torch.float32)


@pytest.mark.parametrize("floor", [0.0, 1.0])
def test_largest_error_of_a_value_is_what_allclose_asks_for(floor: float) -> None:
    theirs = torch.tensor([0.0, 1.0, -3.0, float("inf")])
    for error in (1e-3, 1e-2, 0.1):
        for value in (0.0, 5e-3, 1.0 + 5e-3, -3.2, float("inf"), NOT_A_NUMBER):
            ours = theirs.clone()
            ours[1] = value
            ours[0] = 0.0 if value else 5e-3
            expected = torch.allclose(ours, theirs, rtol=error, atol=error * floor)
            assert (by_value(ours, theirs, floor) <= error) == expected, (value, error)


def test_errors_of_nothing_and_of_no_number() -> None:
    nothing, some = torch.zeros(3), torch.ones(3)
    assert by_norm(nothing, nothing) == by_value(some, some) == 0.0
    assert by_norm(some, nothing) == float("inf")
    assert by_norm(1.1 * some, some) == pytest.approx(0.1, rel=1e-3)
    for error in (by_norm, by_value):
        with pytest.raises(ArithmeticError, match="it is off by nan%"):
            require_close(some * NOT_A_NUMBER, some, "it", error=error)


class _Doubled(torch.autograd.Function):
    """Twice x, with a gradient of ``factor``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] * ctx.factor, None


def doubled(factor: float) -> Any:
    return lambda x: _Doubled.apply(x, factor)  # type: ignore[no-untyped-call]


def test_gradients_are_compared() -> None:
    require_same(doubled(2.0), lambda x: x + x, inputs(3))
    for factor in (2.1, NOT_A_NUMBER):
        with pytest.raises(ArithmeticError, match="its gradient is off by"):
            require_same(doubled(factor), lambda x: x + x, inputs(3))


def test_each_result_and_each_gradient_is() -> None:
    def pair(x: Tensor, y: Tensor, wrong: int = 0) -> tuple[Tensor, Tensor]:
        return x * (1.1 if wrong == 1 else 1), y * (NOT_A_NUMBER if wrong == 2 else 1)

    for wrong in (1, 2):
        with pytest.raises(ArithmeticError, match=f"its result {wrong} is off by"):
            require_same(partial(pair, wrong=wrong), pair, inputs(3, 5))
    with pytest.raises(ArithmeticError, match="its gradient 2 is off by"):
        require_same(lambda x, y: (x, doubled(3.0)(y)), lambda x, y: (x, y * 2), inputs(3, 5))


def test_functions_may_overwrite_what_they_are_given() -> None:
    def in_place(x: Tensor) -> Tensor:
        return x.mul_(2)

    asking, given = inputs(3), [torch.ones(3)]
    for each in (asking, given):
        require_same(in_place, lambda x: x + x, each)
    assert torch.equal(given[0], torch.ones(3))


def test_a_kernel_that_is_right_at_first_only_is_found() -> None:
    launches: list[int] = []

    def at_first(x: Tensor) -> Tensor:
        launches.append(1)
        return x * (1 if len(launches) == 1 else 2)

    with pytest.raises(ArithmeticError):
        require_same(at_first, lambda x: x * 1, inputs(3))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ImportError("No module named 'triton'"), "No module named 'triton'"),
        (ArithmeticError("its result is off by 5.0%"), "its result is off by 5.0%"),
        (Unsuited("not for this head"), "not for this head"),
        (RuntimeError("no compiler\nand more"), "RuntimeError: no compiler"),
        (KeyError(), "KeyError"),
    ],
)
def test_what_fails_is_left_out_in_one_line(error: Exception, words: str) -> None:
    def fails() -> int:
        raise error

    said: list[str] = []
    assert attempt("norms (ours)", fails, 7, instead="torch", warn=said.append) == 7
    assert said == [f"kernel for norms (ours): {words}; torch does it instead"]
    assert attempt("norms (ours)", lambda: 8, 7, instead="torch", warn=pytest.fail) == 8


def test_other_errors_are_the_callers() -> None:
    def out_of_memory() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        attempt("it", out_of_memory, 7, instead="torch", warn=pytest.fail, caught=DISAGREES)


def test_functions_agree_or_not() -> None:
    said: list[str] = []
    assert agree("sums (ours)", doubled(2.0), lambda x: x + x, inputs(3), instead="torch", warn=pytest.fail)
    assert not agree("sums (ours)", lambda x: x + 1, lambda x: x + x, inputs(3), instead="torch", warn=said.append)
    assert said[0].startswith("kernel for sums (ours): its result is off by ")
