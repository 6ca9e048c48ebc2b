"""What Liger's kernels hold, without what they compute: they run on fake tensors, where Triton cannot.

They keep what the real ones keep, and write over what the real ones write over.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qlora_core.kernels.norm_rope_swiglu import FusedLayers, LayerKernels, _Trial, fuse_layers


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, overwrites: bool) -> Tensor:
        ctx.overwrites = overwrites
        ctx.save_for_backward(x, weight, torch.empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        assert ctx.saved_tensors
        given = grad_outputs[0]
        return (given.view(given.shape) if ctx.overwrites else torch.zeros_like(given)), None, None


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return torch.empty_like(gate)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return gate.view(gate.shape), up.view(up.shape)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        return _laid_out(q), _laid_out(k)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return _laid_out(grad_outputs[0]), _laid_out(grad_outputs[1]), None, None


def _laid_out(heads: Tensor) -> Tensor:
    """Token by token in memory, which is a copy only where it was not."""
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def _applied(function: Any, count: int) -> Callable[..., Any]:
    return lambda *arguments: function.apply(*arguments[:count])


FAKE_KERNELS = LayerKernels(
    whose="a fake",
    norm=lambda x, weight, epsilon, offset, casting, overwrites: _applied(_Norm, 3)(x, weight, overwrites),
    silu=_applied(_Activation, 2),
    gelu_tanh=_applied(_Activation, 2),
    rotate=_applied(_Rotation, 4),
)


def fuse_fakes(model: Any, dtype: torch.dtype) -> FusedLayers:
    """Every kernel in its place; there are no numbers to try them on."""
    agree, agree_on_rotation = _Trial.agree, _Trial.agree_on_rotation
    _Trial.agree = _Trial.agree_on_rotation = lambda *arguments: True  # type: ignore[assignment, method-assign]
    try:
        return fuse_layers(model, [FAKE_KERNELS], dtype)
    finally:
        _Trial.agree, _Trial.agree_on_rotation = agree, agree_on_rotation  # type: ignore[method-assign]
