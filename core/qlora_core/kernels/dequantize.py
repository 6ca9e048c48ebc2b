"""Frozen 4-bit weights in the arithmetic's format, as products need them.

bitsandbytes makes one in three kernels. Where Triton works one kernel makes the same, in about half the time: bit for
bit in bfloat16, to the last bits in other formats.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from qlora_core.kernels.trial import by_value, require_same
from qlora_core.kernels.triton_launch import Launcher
from qlora_core.model.bitsandbytes import linear_4bit

Dequantize = Callable[[Any], Tensor]
"""From a frozen layer to its weight, O x I."""

VALUES, SCALES = 64, 256
"""Values that share a scale, and scales that share one of their own: what ``load_in_4bit`` quantises to."""
BLOCKS, WARPS = 32, 2
"""Blocks of values for a program: within 2% of the fastest of 5 x 3 tried on an H200, at every shape of an 8B."""
TRIAL_SHAPE = (48, 1088)
LAST_BITS = 4
"""Parts of a format's precision by which a trial may be off: a multiplication and an addition may be rounded once."""


def dequantized_weight(base: Any) -> Tensor:
    """The weight of a frozen layer, O x I, dequantized by bitsandbytes where it is quantised."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight  # type: ignore[no-any-return]
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(base.weight.view(-1, 1), state)  # type: ignore[no-any-return]


def triton_dequantize(device: torch.device, dtype: torch.dtype) -> Dequantize:
    """The same by a kernel of our own, for the weights that it is made for, after both were compared on random ones.

    Raises:
        ImportError: there is no Triton.
        ArithmeticError: it makes other values than bitsandbytes.
    """
    launch = Launcher(import_module("qlora_core.kernels.dequantize_triton").dequantize)

    def dequantize(base: Any) -> Tensor:
        state = getattr(base.weight, "quant_state", None)
        if state is None or not suits(state):
            return dequantized_weight(base)
        return _launched(launch, base.weight, state)

    weight = torch.randn(TRIAL_SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)
    layer = linear_4bit(weight, device, dtype=dtype)
    tolerance = LAST_BITS * torch.finfo(dtype).eps
    require_same(lambda: dequantize(layer), lambda: dequantized_weight(layer), tolerance=tolerance, error=by_value)
    return dequantize


def suits(state: Any) -> bool:
    """Whether a weight is quantised in the one way that the kernel reads: blocks of 64, their scales in 8 bits."""
    if not state.nested or state.blocksize != VALUES or state.state2.blocksize != SCALES:
        return False
    return state.shape.numel() % VALUES == 0 and state.offset is not None


def _launched(launch: Launcher, packed: Tensor, state: Any) -> Tensor:
    out = torch.empty(state.shape, dtype=state.dtype, device=packed.device)
    count = out.numel() // VALUES
    scales = (state.absmax, state.state2.code, state.state2.absmax, state.offset)
    kind = packed.device, packed.dtype, out.dtype
    launch(kind, -(-count // BLOCKS), (packed, *scales, state.code, out), count, BLOCKS, warps=WARPS)
    return out
