"""bitsandbytes: importing it, and its 4-bit layers made or prepared for training. The one place that does any of it."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

HAVE_KERNELS = ("cuda", "cpu")
"""Devices for which bitsandbytes has kernels of its own."""


def import_bitsandbytes(device: str) -> None:
    """Import bitsandbytes without torch's compiler, which takes longer than all the rest of it.

    It (0.50) has functions compiled as it is imported that only devices without kernels of their own ever call.
    """
    if device not in HAVE_KERNELS or "bitsandbytes" in sys.modules:
        return
    import torch

    compiler = torch.compile
    torch.compile = lambda function=None, **options: function if function else lambda each: each  # type: ignore
    try:
        import_module("bitsandbytes")
    finally:
        torch.compile = compiler


def linear_4bit(
    weight: "Tensor",
    device: "torch.device | str",
    *,
    dtype: "torch.dtype | None" = None,
    bias: Any = None,
    **options: Any,
) -> Any:
    """A frozen 4-bit layer of ``weight`` (out x in) on ``device``, ready for training.

    Args:
        dtype: what products are computed in; the input's where there is none.
        bias: of the layer, or ``None``.
        options: of ``Params4bit``; NF4 with double quantisation where they say nothing else.
    """
    from bitsandbytes.nn import Linear4bit, Params4bit

    rows, columns = weight.shape
    layer = Linear4bit(columns, rows, bias=bias is not None, compute_dtype=dtype, device="meta")
    wanted = {"quant_type": "nf4", "compress_statistics": True} | options
    layer.weight = Params4bit(weight, requires_grad=False, module=layer, **wanted)
    layer.bias = bias
    return keep_differentiable(layer.to(device))


def quantise_layers(
    module: "torch.nn.Module", device: "torch.device | str", dtype: "torch.dtype | None" = None
) -> None:
    """Put 4-bit layers in place of all plain linear layers inside ``module``."""
    import torch

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, linear_4bit(child.weight.data, device, dtype=dtype, bias=child.bias))


def keep_differentiable(model: Any) -> Any:
    """Stop bitsandbytes (0.50) from repacking the 4-bit weights of ``model`` on CPUs with AVX512-BF16; returns it.

    It does so in the first forward in eval mode that needs no gradient (held-out rows are such a one), and never goes
    back: the packed product has no backward, so every later gradient through it would silently be wrong.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model
