"""Which of a kernel's compiled forms is launched: the right one, or Triton is asked."""

from collections.abc import Callable
from typing import Any

import torch

from qlora_core.kernels.triton_launch import ALIGNED, Launcher


class FakeKernel:
    """Notes what Triton is asked for, and what is launched without asking."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.launched: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        def ask(*arguments: Any, num_warps: int) -> "Compiled":
            self.asked.append((grid, arguments, num_warps))
            return Compiled(self, len(self.asked))

        return ask


class Compiled:
    def __init__(self, kernel: FakeKernel, number: int) -> None:
        self.kernel, self.number = kernel, number

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments: self.kernel.launched.append((self.number, grid, arguments))


def test_each_kind_is_looked_up_once() -> None:
    kernel = FakeKernel()
    launch, x = Launcher(kernel), torch.zeros(64)
    for kind, rows in (("a", 3), ("a", 5), ("b", 7), ("a", 9), ("b", 11)):
        launch(kind, rows, (x,), rows, 0.5, warps=4)
    assert [(grid, numbers[1:], warps) for grid, numbers, warps in kernel.asked] == [
        ((3,), (3, 0.5), 4),
        ((7,), (7, 0.5), 4),
    ]
    seen = [(number, grid, numbers[1:]) for number, grid, numbers in kernel.launched]
    assert seen == [(1, (5, 1, 1), (5, 0.5)), (1, (9, 1, 1), (9, 0.5)), (2, (11, 1, 1), (11, 0.5))]


def test_addresses_that_no_tensor_is_made_at_go_to_triton_each_time() -> None:
    """A kernel that was compiled for aligned addresses reads another's neighbours, or fails."""
    kernel = FakeKernel()
    launch, whole = Launcher(kernel), torch.zeros(64, dtype=torch.uint8)
    odd = whole[1:]
    assert odd.data_ptr() % ALIGNED
    for tensor in (odd, whole, odd, whole):
        launch("a", 1, (whole, tensor), warps=1)
    assert len(kernel.asked) == 3
    assert len(kernel.launched) == 1
    assert kernel.launched[0][0] == 2, "what was compiled for the odd one is forgotten"
