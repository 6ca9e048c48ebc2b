"""Attention over sequences laid end to end, each blind to its neighbours.

``varlen`` is torch's own kernel for it (CUDA, torch 2.10 on, no extra package; ``batched_attention`` where all are
equally long); ``flash`` the flash-attn package; ``sdpa`` torch's scaled dot product with the block-diagonal causal mask
that transformers builds from the restarting positions (exact only without a cache).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.kernels import batched_attention
from qlora_core.kernels.trial import by_value, random_inputs, require_same
from qlora_core.model.packing import Packed
from qlora_profiles.architectures import architecture_of

VARLEN = "qlora_varlen"
IMPLEMENTATIONS = {"varlen": VARLEN, "flash": "flash_attention_2", "sdpa": "sdpa"}


def implementation(attention: str, config: Any) -> str:
    """transformers' name for the kernel; registers ours.

    A model that caps its attention scores (Gemma 2) is computed eagerly: no other kernel here caps them.
    """
    cap = architecture_of(config.model_type).score_cap
    if cap and getattr(config, cap, None):
        return "eager"
    if attention == "varlen":
        _register_varlen()
    return IMPLEMENTATIONS[attention]


def sequence_arguments(attention: str, packed: Packed, full_length: int | None = None) -> dict[str, Any]:
    """What a kernel needs to know of the boundaries, under transformers' names and one of ours.

    ``full_length`` is what the examples are cut at (tokens).
    """
    if attention == "sdpa":
        return {}
    ours = {"row_length": batched_attention.row_length(packed, full_length)} if attention == "varlen" else {}
    return ours | {
        "cu_seq_lens_q": packed.boundaries,
        "cu_seq_lens_k": packed.boundaries,
        "max_length_q": packed.longest,
        "max_length_k": packed.longest,
    }


def _register_varlen() -> None:
    """Without a mask function: the boundaries say everything that a mask would.

    For a kernel that has one transformers looks through the positions in each forward, and waits for the card.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)


def varlen_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    row_length: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function on ``torch.nn.attention.varlen``; a sequence alone needs no such kernel.

    ``row_length`` is the length of all sequences, where that is one and a batch's kernels are worth it.

    ``query`` is 1 x heads x T x head_dim, ``key`` and ``value`` 1 x kv_heads x T x head_dim; the result is
    1 x T x heads x head_dim. A window of w lets a token see itself and the w - 1 before it.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        return alone(query, key, value, scaling, sliding_window), None
    q, k, v = (_flat(t, query.dtype) for t in (query, key, value))
    if row_length and not (sliding_window and sliding_window < row_length):
        return batched_attention.attend(q, k, v, row_length, scaling)[None], None
    return end_to_end(q, k, v, cu_seq_lens_q, max_length_q, scaling, sliding_window)[None], None


def end_to_end(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    boundaries: Tensor,
    longest: int,
    scale: float | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """torch's kernel for sequences laid end to end: T x heads x d of each, and as much again."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"scale": scale, "window_size": (sliding_window - 1 if sliding_window else -1, 0)}
    if q.shape[1] != k.shape[1]:
        k, v = _shared_heads(q, k, v, options)
    out = varlen_attn(q, k, v, boundaries, boundaries, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out


def alone(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, sliding_window: int | None) -> Tensor:
    """Attention of one unpadded sequence, as generation asks for it: no boundaries, and keys from a cache.

    The queries (1 x heads x Q x d) are the last Q of the K positions that the keys stand for; 1 x Q x heads x d.
    """
    queries, keys = query.shape[2], key.shape[2]
    at = torch.arange(keys - queries, keys, device=query.device)[:, None]
    seen = torch.arange(keys, device=query.device)[None]
    mask = seen <= at
    if sliding_window:
        mask &= seen > at - sliding_window
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1).to(query.dtype) for t in (key, value))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2)


def _flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """1 x heads x T x d -> T x heads x d, in the 16-bit format that the kernel takes; rarely a copy.

    Not by an index: the gradient of that one is a copy, and laid out so that the next one must be, too.
    """
    if torch.is_autocast_enabled(tensor.device.type):
        dtype = torch.get_autocast_dtype(tensor.device.type)
    return tensor.squeeze(0).transpose(0, 1).to(dtype).contiguous()


def _shared_heads(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Let the kernel share key heads between queries where this torch can; expand them where it cannot."""
    sharing = _sharing(q.device)
    if sharing is not None:
        options |= sharing
        return k, v
    groups = q.shape[1] // k.shape[1]
    return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)


@cache
def _sharing(device: torch.device) -> dict[str, Any] | None:
    """What to tell the kernel so that queries share key heads: the word for it, or nothing where it does so unasked.

    ``None`` where it cannot. Before torch 2.12 there is no word, and trying is the only way to know.
    """
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    if "enable_gqa" in inspect.signature(varlen_attn).parameters:
        return {"enable_gqa": True}
    return {} if shares_heads(varlen_attn, device) else None


def shares_heads(kernel: Callable[..., Any], device: torch.device, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether a kernel given fewer key heads makes what it makes of keys expanded to all heads, gradients included.

    One that does not is no fault: nobody is told.
    """
    ends = torch.tensor([0, 9, 24], dtype=torch.int32, device=device)

    def few(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return kernel(q, k, v, ends, ends, 15, 15, window_size=(-1, 0))

    def many(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return few(q, *(each.repeat_interleave(2, dim=1) for each in (k, v)))

    inputs = random_inputs([(24, heads, 64) for heads in (4, 2, 2)], device, dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            require_same(few, many, inputs, tolerance=0.05, error=partial(by_value, floor=1.0))
    except (RuntimeError, ValueError, ArithmeticError):
        return False
    return True
