"""Our norms and activations beside torch's own words for them, over widths and rows that fit no block."""

from importlib.util import find_spec

import pytest
import torch
from support.on_card import CARD
from torch import Tensor
from torch.nn.functional import silu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SHAPES = [(3, 128), (1, 5, 7, 80), (33, 4096), (2, 1000), (70, 2560), (1, 1)]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(CARD, dtype)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().float() - expected.detach().float()).norm() / expected.detach().float().norm())


@pytest.mark.parametrize("overwrites", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, wide: bool, overwrites: bool) -> None:
    from qlora_core.kernels.layer_functions import LayerFunctions, Norm

    kernels, how = LayerFunctions(), Norm(1e-6, 1.0 if wide else 0.0, wide)
    weight, grad = drawn(shape[-1:], dtype, 1), drawn(shape, dtype, 2)
    for seed in (3, 4):  # the second time what was compiled is launched without Triton
        ours, plain = (drawn(shape, dtype, seed).requires_grad_() for _ in range(2))
        found = kernels.norm(ours, weight, how, overwrites)
        values = plain.float() * torch.rsqrt(plain.float().pow(2).mean(-1, keepdim=True) + how.epsilon)
        expected = (values * (weight.float() + how.offset)).to(dtype) if wide else values.to(dtype) * weight
        assert apart(found, expected) < TOLERANCES[dtype]
        (of_ours,) = torch.autograd.grad(found, ours, grad.clone())
        (of_plain,) = torch.autograd.grad(expected, plain, grad)
        assert apart(of_ours, of_plain) < 2 * TOLERANCES[dtype] or float(of_plain.float().norm()) < 1e-3
        with torch.no_grad():
            assert torch.equal(kernels.norm(ours, weight, how, overwrites), found)


def in_words(x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, wide: bool) -> Tensor:
    values = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    normed = (values * (weight.float() + 1.0)).to(x.dtype) if wide else values.to(x.dtype) * weight
    left, right = normed.chunk(2, dim=-1)
    return normed * cos[:, :, None] + torch.cat((-right, left), dim=-1) * sin[:, :, None]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", [(1, 7, 3, 128), (1, 1, 1, 64), (1, 33, 32, 128), (2, 5, 4, 96), (1, 9, 2, 256)])
def test_heads_normed_and_turned(shape: tuple[int, ...], dtype: torch.dtype, wide: bool) -> None:
    from qlora_core.kernels.layer_functions import LayerFunctions, Norm

    kernels, how = LayerFunctions(), Norm(1e-6, 1.0 if wide else 0.0, wide)
    weight, grad = drawn(shape[-1:], dtype, 1), drawn(shape, dtype, 2)
    angles = drawn((1, shape[1], shape[-1] // 2), torch.float32, 5).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    for seed in (3, 4):  # the second time what was compiled is launched without Triton
        ours, plain = (drawn(shape, dtype, seed).requires_grad_() for _ in range(2))
        found, expected = kernels.norm_rope(ours, weight, how, cos, sin), in_words(plain, weight, cos, sin, wide)
        assert apart(found, expected) < TOLERANCES[dtype]
        (of_ours,) = torch.autograd.grad(found, ours, grad.clone())
        (of_plain,) = torch.autograd.grad(expected, plain, grad)
        assert apart(of_ours, of_plain) < 2 * TOLERANCES[dtype]
        with torch.no_grad():
            assert torch.equal(kernels.norm_rope(ours, weight, how, cos, sin), found)


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("shape", SHAPES)
def test_activations(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    from qlora_core.kernels.layer_functions import LayerFunctions

    kernels, grad = LayerFunctions(), drawn(shape, dtype, 1)
    for seed in (2, 4):
        leaves = [drawn(shape, dtype, seed + i).requires_grad_() for i in range(2)]
        found = kernels.silu(*(leaf * 1 for leaf in leaves))
        expected = silu(leaves[0]) * leaves[1]
        assert apart(found, expected) < TOLERANCES[dtype]
        of_ours, of_torch = (torch.autograd.grad(result, leaves, grad.clone()) for result in (found, expected))
        assert all(apart(a, b) < 2 * TOLERANCES[dtype] for a, b in zip(of_ours, of_torch, strict=True))
        with torch.no_grad():
            assert torch.equal(kernels.silu(*leaves), found)


def test_rows_that_do_not_begin_where_tensors_do() -> None:
    """What was compiled for aligned addresses would fail on others."""
    from qlora_core.kernels.layer_functions import LayerFunctions, Norm

    kernels, how = LayerFunctions(), Norm(1e-6, 0.0, False)
    whole, weight = drawn((9, 128), torch.bfloat16, 1), drawn((128,), torch.bfloat16, 2)
    odd = whole.flatten()[3 : 3 + 8 * 128].view(8, 128)
    with torch.no_grad():
        for _ in range(3):
            aligned = kernels.norm(odd.clone(), weight, how, False)
            assert torch.equal(kernels.norm(odd, weight, how, False), aligned)
