"""Attention over sequences laid end to end, each blind to its neighbours.

``varlen`` is torch's own kernel for it (CUDA, torch 2.10 on, no extra package); ``flash`` the flash-attn
package; ``sdpa`` torch's scaled dot product with the block-diagonal causal mask that transformers builds
from the restarting positions (exact only without a cache).
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qlora_core.step.packing import Packed

VARLEN = "qlora_varlen"
IMPLEMENTATIONS = {"varlen": VARLEN, "flash": "flash_attention_2", "sdpa": "sdpa"}


def implementation(attention: str, config: Any) -> str:
    """transformers' name for the kernel; registers ours.

    A model that caps its attention scores (Gemma 2) is computed eagerly: no other kernel here caps them.
    """
    if getattr(config, "attn_logit_softcapping", None):
        return "eager"
    if attention == "varlen":
        _register_varlen()
    return IMPLEMENTATIONS[attention]


def sequence_arguments(attention: str, packed: Packed) -> dict[str, Any]:
    """What a kernel needs to know of the boundaries, under transformers' names."""
    if attention == "sdpa":
        return {}
    return {
        "cu_seq_lens_q": packed.boundaries,
        "cu_seq_lens_k": packed.boundaries,
        "max_length_q": packed.longest,
        "max_length_k": packed.longest,
    }


def _register_varlen() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, _no_mask)


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The boundaries say everything that a mask would."""


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function on ``torch.nn.attention.varlen``.

    ``query`` is 1 x heads x T x head_dim, ``key`` and ``value`` 1 x kv_heads x T x head_dim; the result is
    1 x T x heads x head_dim. A window of w lets a token see itself and the w - 1 before it.
    """
    from torch.nn.attention.varlen import varlen_attn

    if cu_seq_lens_q is None or max_length_q is None:
        raise ValueError("varlen attention needs the sequences' boundaries")
    q, k, v = (_flat(t, query.dtype) for t in (query, key, value))
    options: dict[str, Any] = {"scale": scaling, "window_size": (sliding_window - 1 if sliding_window else -1, 0)}
    if q.shape[1] != k.shape[1]:
        k, v = _shared_heads(q, k, v, options)
    out = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **options)
    assert isinstance(out, Tensor)
    return out[None], None


def _flat(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """1 x heads x T x d -> T x heads x d, in the 16-bit format that the kernel takes."""
    if torch.is_autocast_enabled(tensor.device.type):
        dtype = torch.get_autocast_dtype(tensor.device.type)
    return tensor[0].transpose(0, 1).to(dtype).contiguous()


def _shared_heads(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Let the kernel share key heads between queries where this torch can; expand them where it cannot."""
    if _kernel_groups_heads():
        options["enable_gqa"] = True
        return k, v
    groups = q.shape[1] // k.shape[1]
    return k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)


@cache
def _kernel_groups_heads() -> bool:
    import inspect

    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
