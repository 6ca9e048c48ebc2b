"""Attention where all sequences of a micro-batch have one length: a batch, for which there are faster kernels.

The kernel for sequences laid end to end is FlashAttention 2; for a batch torch also has cuDNN's, which on Hopper
takes little more than half the time (``bench/attention.py``).

Shape legend: B sequences of S tokens each, T = B * S.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from qlora_core.kernels.trial import agree, random_inputs
from qlora_core.model.packing import Packed
from qlora_core.session.fallback import Warn

Varlen = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""Attention of q, k and v (T x heads x d) whose sequences end at the boundaries; the last is the longest's length."""

SHORTEST = 1024
"""Below that attention takes too little of a step for a plan of its shape to be won back soon."""
LONG = 8192
"""cuDNN plans anew for each B and S that it has not seen, which takes about as long as this many tokens win."""
GENERATIONS = (9, 10)
"""Compute capabilities (their first number) on which torch itself prefers cuDNN: Hopper and Blackwell."""


def worth(length: int, full_length: int) -> bool:
    """Whether rows of a length are worth a plan: those that examples are cut at, which come again and again, or long
    ones."""
    return length >= SHORTEST and (length == full_length or length >= LONG)


def row_length(packed: Packed, full_length: int | None) -> int | None:
    """S, where the sequences are equally long and that length is worth a plan; else ``None``.

    ``full_length`` is what examples are cut at; ``None``: never.
    """
    length = packed.longest
    if full_length is None or not worth(length, full_length) or set(packed.lengths) != {length}:
        return None
    return length


def usable(config: Any, device: torch.device, varlen: Varlen, warn: Warn) -> bool:
    """Whether this device has a faster kernel for rows, which gives for a model's heads what ``varlen`` gives.

    ``warn`` is told where it has one that does not. Tried before the first step: inside of it, what a trial keeps for
    its backward would be taken for the model's.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device)[0] not in GENERATIONS:
        return False
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return same_attention(varlen, device, heads, key_heads, width, warn=warn)


def attend(q: Tensor, k: Tensor, v: Tensor, length: int, scale: float | None) -> Tensor:
    """Causal attention of each row by itself: T x heads x d of each, and as much again."""
    a, b, c = (each.view(-1, length, *each.shape[1:]).transpose(1, 2) for each in (q, k, v))
    with _fastest(q.is_cuda):
        out = torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2).reshape(q.shape)


def _fastest(on_card: bool) -> AbstractContextManager[Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not on_card:
        return sdpa_kernel(SDPBackend.MATH)
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True)


def same_attention(
    varlen: Varlen, device: torch.device, heads: int, key_heads: int, width: int, length: int = 256, *, warn: Warn
) -> bool:
    """Whether two rows give the same by ``attend`` and by ``varlen(q, k, v, boundaries, length)``, and in backward."""
    shapes = [(2 * length, count, width) for count in (heads, key_heads, key_heads)]
    ends = torch.tensor([0, length, 2 * length], dtype=torch.int32, device=device)
    with torch.autocast(device.type, enabled=False):
        return agree(
            "rows of one length (torch)",
            lambda q, k, v: attend(q, k, v, length, None),
            lambda q, k, v: varlen(q, k, v, ends, length),
            random_inputs(shapes, device, torch.bfloat16),
            instead="the one for any lengths",
            warn=warn,
        )
