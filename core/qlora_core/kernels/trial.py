"""The one way to try a kernel against the code that it would replace, torch's or the model's own.

A kernel is believed where, on a few random numbers, it makes what that code makes, and gives the same gradients.
Whatever else happens (no package, no compiler, another result) the code itself goes on, and one line says so.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from qlora_core.session.fallback import Warn, failure

TOLERANCE = 0.02
"""Largest error, in parts of the result's norm: bfloat16 has a relative precision of 0.004."""

Error = Callable[[Tensor, Tensor], float]
"""How far one tensor is from another of its shape: 0 where they are equal, not a number where one of them is none."""

T = TypeVar("T")


def by_norm(ours: Tensor, theirs: Tensor) -> float:
    """The Euclidean norm of the difference, in parts of the norm of ``theirs``; in float32."""
    apart, size = (ours.float() - theirs.float()).norm(), theirs.float().norm()
    return float(torch.where(apart == 0, apart, apart / size))


def by_value(ours: Tensor, theirs: Tensor, floor: float = 0.0) -> float:
    """The largest difference of two values, in parts of ``floor`` plus the size of the one in ``theirs``; in float32.

    At most e exactly where ``torch.allclose`` holds with ``rtol`` e and ``atol`` e times ``floor``.
    """
    ours, theirs = ours.float(), theirs.float()
    apart = (ours - theirs).abs() / (floor + theirs.abs())
    return float(torch.where(ours == theirs, 0.0, apart).max())


def require_close(
    ours: Tensor, theirs: Tensor, what: str, tolerance: float = TOLERANCE, error: Error = by_norm
) -> None:
    """Compare two tensors. Raises: ArithmeticError where they differ by more than ``tolerance``."""
    apart = error(ours.detach(), theirs.detach())
    if not apart <= tolerance:  # not a number is no agreement either
        raise ArithmeticError(f"{what} is off by {apart:.1%}")


def require_same(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: Sequence[Tensor] = (),
    *,
    tolerance: float = TOLERANCE,
    error: Error = by_norm,
) -> None:
    """Compare what two functions make of the same tensors, and their gradients for those that ask for one.

    Functions may overwrite what they are given: each gets tensors of its own.

    Raises:
        ArithmeticError: a result or a gradient differs by more than ``tolerance``.
    """
    expected = dict(_outcome(theirs, inputs))
    dict(_outcome(ours, inputs))  # a kernel's first launch is not like those that follow
    for name, found in _outcome(ours, inputs):
        require_close(found, expected[name], name, tolerance, error)


@torch.enable_grad()
def _outcome(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """Results and gradients of a function by name; copies, which no later launch changes."""
    out = function(*(each * 1 if each.requires_grad else each.clone() for each in inputs))
    outs = out if isinstance(out, tuple) else (out,)
    results = [each.detach().clone() for each in outs]
    learning = [each for each in inputs if each.requires_grad]
    return [*_numbered("its result", results), *_numbered("its gradient", _gradients(outs, learning))]


def _gradients(outs: tuple[Tensor, ...], inputs: list[Tensor]) -> Sequence[Tensor]:
    if not inputs:
        return ()
    total = torch.stack([(out.float() * out.float().detach().cos()).sum() for out in outs]).sum()
    return torch.autograd.grad(total, inputs)


def _numbered(name: str, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    for number, tensor in enumerate(tensors, 1):
        yield (f"{name} {number}" if len(tensors) > 1 else name), tensor


def random_inputs(shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """The same normal numbers each time, one tensor a shape, that ask for a gradient."""
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw).to(device, dtype).requires_grad_() for shape in shapes]


def attempt(
    kernel: str,
    make: Callable[[], T],
    otherwise: T,
    *,
    instead: str,
    warn: Warn,
    caught: tuple[type[Exception], ...] = (Exception,),  # a compiler that is missing or fails shows itself in many ways
) -> T:
    """What ``make`` gives after its trials, or ``otherwise``, which ``warn`` is told in one line.

    Args:
        kernel: what it computes and whose it is, as in "the loss (triton)".
        make: makes the kernel and tries it; raises where that is not to be used.
        otherwise: what the caller gets then.
        instead: who computes in its place.
        warn: told once.
        caught: errors of ``make`` that only mean this; all others are the caller's.
    """
    try:
        return make()
    except caught as error:
        warn(failure(kernel, error, instead))
        return otherwise


def agree(
    kernel: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    inputs: Sequence[Tensor],
    *,
    instead: str,
    warn: Warn,
) -> bool:
    """Whether two functions are the same (``require_same``); ``warn`` is told where they are not, or do not run."""

    def tried() -> bool:
        require_same(ours, theirs, inputs)
        return True

    return attempt(kernel, tried, False, instead=instead, warn=warn)
