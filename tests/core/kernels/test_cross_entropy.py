"""Kernels of the loss: one value and one gradient, however it is computed."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

from qlora_core.kernels.cross_entropy import KERNELS, Head, losses_of, usable_kernel
from qlora_core.kernels.logit_gradients import torch_cross_entropy


def _problem(softcap: float | None, bias: bool = False) -> tuple[torch.Tensor, torch.Tensor, Head]:
    torch.manual_seed(1)
    module = nn.Linear(16, 50, bias=bias).requires_grad_(False)
    hidden = torch.randn(23, 16, requires_grad=True)
    return hidden, torch.randint(0, 50, (23,)), Head(module=module, softcap=softcap)


def _plain(hidden: torch.Tensor, targets: torch.Tensor, head: Head) -> torch.Tensor:
    return nn.functional.cross_entropy(head.logits(hidden), targets, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 7, 23, 100])
@pytest.mark.parametrize("bias", [False, True])
def test_tiles_equal_the_plain_loss_in_value_and_gradient(softcap: float | None, chunk: int, bias: bool) -> None:
    hidden, targets, head = _problem(softcap, bias)
    plain = _plain(hidden, targets, head)
    (expected,) = torch.autograd.grad(plain * 0.3, hidden)
    loss = KERNELS["chunked"](hidden, targets, head, chunk)
    (gradient,) = torch.autograd.grad(loss * 0.3, hidden)
    torch.testing.assert_close(loss, plain.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_trained_head_gets_the_plain_gradient(softcap: float | None) -> None:
    hidden, targets, head = _problem(softcap)
    weight = head.weight.requires_grad_(True)
    assert not head.frozen
    expected = torch.autograd.grad(_plain(hidden, targets, head), [hidden, weight])
    got = torch.autograd.grad(KERNELS["chunked"](hidden, targets, head, 7), [hidden, weight])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_slopes_are_what_losses_change_by(softcap: float | None) -> None:
    torch.manual_seed(2)
    logits, targets = torch.randn(9, 50, requires_grad=True), torch.randint(0, 50, (9,))
    capped = torch.tanh(logits / softcap) * softcap if softcap else logits
    expected = nn.functional.cross_entropy(capped, targets, reduction="none")
    losses, gradients = torch_cross_entropy(logits.detach().clone(), targets, softcap)
    torch.testing.assert_close(losses, expected.detach())
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    torch.testing.assert_close(gradients, gradient)


@pytest.mark.skipif(torch.cuda.is_available() and find_spec("triton") is not None, reason="Triton works here")
def test_our_kernel_where_triton_does_not_work() -> None:
    """The chunked kernel computes in its place, and says why."""
    hidden, targets, head = _problem(None)
    said: list[str] = []
    assert usable_kernel("triton", head, said.append) == "chunked"
    (line,) = said
    assert line.startswith("kernel for the loss (triton): ")
    assert line.endswith("; chunked does it instead")
    expected = nn.functional.cross_entropy(head.logits(hidden), targets, reduction="none")
    torch.testing.assert_close(losses_of("chunked", hidden, targets, head), expected)


@pytest.mark.parametrize(("kernel", "trained"), [("triton", True), ("logits", False)])
def test_a_kernel_that_is_not_for_this_head(kernel: str, trained: bool) -> None:
    said: list[str] = []
    _, _, head = _problem(None)
    head.weight.requires_grad_(trained)
    assert usable_kernel("chunked", head, pytest.fail) == "chunked"
    assert usable_kernel(kernel, head, said.append) == "chunked"
    assert said == [f"kernel for the loss ({kernel}): not for this model's head; chunked does it instead"]
