"""A layer that computes its activations again in backward, with little for the host to do.

torch's own checkpoint records the first forward as well, and asks Python about every tensor that it would keep, twice;
that is a quarter of what the host does (``bench/host.py``). Here the first forward is not recorded,
and what the layer trains is an input of it, so that ``torch.autograd.grad`` and captured graphs see its gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from enum import Enum, auto
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


class Pass(Enum):
    """Which of its two passes a layer that recomputes is in."""

    FIRST = auto()
    RECOMPUTING = auto()


_PASS: ContextVar[Pass | None] = ContextVar("pass", default=None)


def in_first_pass() -> bool:
    """Whether a layer is computed without being recorded, though its backward will come."""
    return _PASS.get() is Pass.FIRST


def in_recomputing_pass() -> bool:
    """Whether a layer is being computed for its backward: only what that reads is of use."""
    return _PASS.get() is Pass.RECOMPUTING


@contextmanager
def in_pass(number: Pass) -> Iterator[None]:
    """Say to whoever is called inside which pass this is."""
    before = _PASS.set(number)
    try:
        yield
    finally:
        _PASS.reset(before)


class InputStore(Protocol):
    """Where a layer's input waits for its backward."""

    def pack(self, tensor: Tensor) -> Any:
        """Take a tensor."""

    def unpack(self, kept: Any) -> Tensor:
        """The tensor that ``pack`` took."""


class OnDevice:
    """Inputs stay where they are."""

    def pack(self, tensor: Tensor) -> Tensor:
        """The tensor itself."""
        return tensor

    def unpack(self, kept: Tensor) -> Tensor:
        """The same."""
        return kept


class NotATensor(TypeError):
    """A layer gives something else than a tensor."""


def checkpoint(run: Callable[[Tensor], Any], x: Tensor, trained: Sequence[Tensor], keeper: InputStore) -> Tensor:
    """What ``run(x)`` gives, computed again in backward.

    Gradients go to ``x`` and to ``trained``, and to nothing else that ``run`` reads.

    Raises:
        NotATensor: it gives no tensor.
    """
    result: Tensor = _Layer.apply(run, keeper, x, *trained)  # type: ignore[no-untyped-call]
    return result


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Any], keeper: InputStore, x: Tensor, *trained: Tensor) -> Tensor:
        ctx.run, ctx.keeper, ctx.trained = run, keeper, trained
        ctx.arithmetic = _autocast_now(x.device.type)
        ctx.kept = keeper.pack(x)
        with in_pass(Pass.FIRST):
            result = run(x)
        if not isinstance(result, Tensor):
            raise NotATensor(f"a layer gave {type(result).__name__}")
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        x, ctx.kept = ctx.keeper.unpack(ctx.kept).detach(), None  # the graph outlives this; the tensor must not
        x.requires_grad_(ctx.needs_input_grad[2])
        with torch.enable_grad(), ctx.arithmetic, in_pass(Pass.RECOMPUTING):
            edge = get_gradient_edge(ctx.run(x))  # nobody reads what the layer made a second time
        inputs = (x, *ctx.trained)
        learning = [each for each in inputs if each.requires_grad]
        found = iter(torch.autograd.grad([edge], learning, grad_outputs, allow_unused=True))
        return (None, None, *(next(found) if each.requires_grad else None for each in inputs))


def _autocast_now(device_type: str) -> AbstractContextManager[Any]:
    """Autocast as it is here: the thread of a backward does not know it."""
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    return _autocast(device_type, torch.get_autocast_dtype(device_type), torch.is_autocast_cache_enabled())


@cache
def _autocast(device_type: str, dtype: torch.dtype, cache_enabled: bool) -> AbstractContextManager[Any]:
    """One for all layers, since it asks the driver for its devices as it is made."""
    return torch.autocast(device_type, dtype, cache_enabled=cache_enabled)
