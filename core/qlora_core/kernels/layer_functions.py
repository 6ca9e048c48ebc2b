"""Norms and SiLU times up by our kernels: what Liger's compute, with less for the host to do.

Norms here learn nothing themselves; where a norm's weight is trained, Liger's or the model's own code computes.

Shape legend: T tokens (all leading dimensions together), H numbers in a row.
"""

from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qlora_core.kernels.triton_launch import Launcher

NARROW = 256
"""Widest rows of which a program takes several: those of a head's norm. The sizes here are set by hand."""
SEVERAL = 32
BLOCK = 2048
"""Numbers of an activation for a program."""
MOST = 2**31
"""From so many numbers on an index takes 64 bits, and a kernel other code."""
EVEN = 16
"""Only where a tensor's size is a multiple of this are several of its numbers read at once."""


class Norm(NamedTuple):
    """How a norm computes: what is added to the mean square, to the weight, and whether all of it is in float32."""

    epsilon: float
    offset: float
    wide: bool


class _Kernels:
    """The kernels, looked up once. Raises: ImportError."""

    def __init__(self) -> None:
        module: Any = import_module("qlora_core.kernels.norm_rope_swiglu_triton")
        self.norm, self.norm_backward = Launcher(module.norm), Launcher(module.norm_backward)
        self.swiglu, self.swiglu_backward = Launcher(module.swiglu), Launcher(module.swiglu_backward)
        self.norm_rope, self.norm_rope_backward = Launcher(module.norm_rope), Launcher(module.norm_rope_backward)


class LayerFunctions:
    """Differentiable functions over the kernels. Raises: ImportError where there is no Triton."""

    def __init__(self) -> None:
        self._kernels = _Kernels()

    def norm(self, x: Tensor, weight: Tensor, how: Norm, overwrites: bool) -> Tensor:
        """The norm of x's rows (T x H). ``overwrites``: backward may write x's gradient over the result's."""
        x = x.contiguous()
        if not torch.is_grad_enabled():
            return _normed(self._kernels, x, weight, how)[0]
        result: Tensor = _Norm.apply(x, weight, how, overwrites, self._kernels)  # type: ignore[no-untyped-call]
        return result

    def norm_rope(self, x: Tensor, weight: Tensor, how: Norm, cos: Tensor, sin: Tensor) -> Tensor:
        """The norm of each head (B x T x heads x H) turned by its token's angles (B x T x H, or 1 for B; halves alike).

        Backward writes x's gradient over the result's.
        """
        x, (cos, sin) = x.contiguous(), (each.expand(len(x), -1, -1).contiguous() for each in (cos, sin))
        if not torch.is_grad_enabled():
            return _norm_rope(self._kernels, x, weight, how, cos, sin)[0]
        result: Tensor = _NormRope.apply(x, weight, how, cos, sin, self._kernels)  # type: ignore[no-untyped-call]
        return result

    def silu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up``. Backward writes their gradients over them."""
        gate, up = gate.contiguous(), up.contiguous()
        if not torch.is_grad_enabled():
            return _swiglu(self._kernels, gate, up)
        result: Tensor = _SwiGlu.apply(gate, up, self._kernels)  # type: ignore[no-untyped-call]
        return result


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: Norm, overwrites: bool, kernels: _Kernels) -> Tensor:
        result, scale = _normed(kernels, x, weight, how)
        ctx.save_for_backward(x, scale)
        ctx.rest = weight, how, overwrites, kernels
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale), (weight, how, overwrites, kernels) = ctx.saved_tensors, ctx.rest
        grad = grad_outputs[0].contiguous()
        out = grad if overwrites else torch.empty_like(grad)
        rows, columns, padded, several, warps = _row_layout(x)
        kernels.norm_backward(
            (x.device, x.dtype, weight.dtype, columns),
            -(-rows // several),
            (grad, x, weight, scale, out),
            rows,
            how.offset,
            columns,
            padded,
            several,
            warps=warps,
        )
        return out, None, None, None, None


def _normed(kernels: _Kernels, x: Tensor, weight: Tensor, how: Norm) -> tuple[Tensor, Tensor]:
    """The result, and what each row was multiplied with (T, float32)."""
    out, (rows, columns, padded, several, warps) = torch.empty_like(x), _row_layout(x)
    scale = x.new_empty(rows, dtype=torch.float32)
    kernels.norm(
        (x.device, x.dtype, weight.dtype, columns, how.wide),
        -(-rows // several),
        (x, weight, out, scale),
        rows,
        how.epsilon,
        how.offset,
        how.wide,
        columns,
        padded,
        several,
        warps=warps,
    )
    return out, scale


def _row_layout(x: Tensor) -> tuple[int, int, int, int, int]:
    """Rows, their numbers, those with a power of two, rows and warps of a program."""
    columns = x.shape[-1]
    padded = 1 << (columns - 1).bit_length()
    return x.numel() // columns, columns, padded, SEVERAL if padded <= NARROW else 1, 8 if padded >= BLOCK else 4


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, how: Norm, cos: Tensor, sin: Tensor, kernels: _Kernels) -> Tensor:
        result, scale = _norm_rope(kernels, x, weight, how, cos, sin)
        ctx.save_for_backward(x, scale, cos, sin)
        ctx.rest = weight, how, kernels
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x, scale, cos, sin), (weight, how, kernels) = ctx.saved_tensors, ctx.rest
        grad = grad_outputs[0].contiguous()
        rows, columns, padded, several, warps = _row_layout(x)
        kernels.norm_rope_backward(
            (x.device, x.dtype, weight.dtype, cos.dtype, columns),
            -(-rows // several),
            (grad, x, weight, cos, sin, scale),
            rows,
            x.shape[-2],
            how.offset,
            columns // 2,
            padded // 2,
            several,
            warps=warps,
        )
        return grad, None, None, None, None, None


def _norm_rope(
    kernels: _Kernels, x: Tensor, weight: Tensor, how: Norm, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """The result, and what each head was multiplied with (T x heads, float32)."""
    out, (rows, columns, padded, several, warps) = torch.empty_like(x), _row_layout(x)
    scale = x.new_empty(rows, dtype=torch.float32)
    kernels.norm_rope(
        (x.device, x.dtype, weight.dtype, cos.dtype, columns, how.wide),
        -(-rows // several),
        (x, weight, cos, sin, out, scale),
        rows,
        x.shape[-2],
        how.epsilon,
        how.offset,
        how.wide,
        columns // 2,
        padded // 2,
        several,
        warps=warps,
    )
    return out, scale


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, kernels: _Kernels) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.kernels = kernels
        return _swiglu(kernels, gate, up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = (kept.detach() for kept in ctx.saved_tensors)  # what the gradients are written over
        _each(ctx.kernels.swiglu_backward, grad_outputs[0].contiguous(), gate, up)
        return gate, up, None


def _swiglu(kernels: _Kernels, gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(up)
    _each(kernels.swiglu, gate, up, out)
    return out


def _each(launch: Launcher, *tensors: Tensor) -> None:
    """Launch a kernel that goes through tensors of one size number by number."""
    first, count = tensors[0], tensors[0].numel()
    kind = (first.device, first.dtype) if count % EVEN == 0 and count < MOST else None
    launch(kind, -(-count // BLOCK), tensors, count, BLOCK, warps=8)
