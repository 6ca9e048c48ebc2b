"""Our kernel of the loss beside torch's own words for it."""

from importlib.util import find_spec

import pytest
import torch
from support.on_card import CARD
from torch import nn
from torch.nn.functional import cross_entropy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed"),
]
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize(("tokens", "vocabulary"), [(3, 7), (1, 8192), (33, 8193), (5, 151_936), (300, 50_257)])
def test_losses_and_gradients(tokens: int, vocabulary: int, dtype: torch.dtype, softcap: float | None) -> None:
    from qlora_core.kernels.logit_gradients import torch_cross_entropy, triton_cross_entropy

    kernel = triton_cross_entropy(CARD, dtype, vocabulary, softcap)
    for seed in (1, 2):  # the second time what was compiled is launched without Triton
        draw = torch.Generator().manual_seed(seed)
        logits = (4 * torch.randn(tokens, vocabulary, generator=draw)).to(CARD, dtype)
        targets = torch.randint(0, vocabulary, (tokens,), generator=draw).to(CARD)
        expected, gradients = torch_cross_entropy(logits.clone(), targets, softcap)
        given = logits.clone()
        torch.testing.assert_close(kernel.losses(given, targets, softcap), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(given, logits)
        losses, over = kernel(given, targets, softcap)
        assert over.data_ptr() == given.data_ptr()
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
        assert float((over.float() - gradients.float()).norm()) < TOLERANCES[dtype] * float(gradients.float().norm())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [7, 64])
def test_the_loss_of_a_frozen_head(chunk: int, bias: bool) -> None:
    from qlora_core.kernels.cross_entropy import KERNELS, Head, losses_of, usable_kernel

    torch.manual_seed(3)
    head = Head(module=nn.Linear(64, 1000, bias=bias, device=CARD, dtype=torch.bfloat16).requires_grad_(False))
    assert usable_kernel("triton", head, pytest.fail) == "triton"
    hidden = torch.randn(50, 64, device=CARD, dtype=torch.bfloat16).requires_grad_()
    targets = torch.randint(0, 1000, (50,), device=CARD)
    plain = cross_entropy(head.logits(hidden), targets, reduction="sum")
    ours = KERNELS["triton"](hidden, targets, head, chunk)
    torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-3)
    of_ours, of_plain = (torch.autograd.grad(loss, hidden)[0].float() for loss in (ours, plain))
    assert float((of_ours - of_plain).norm()) < 0.02 * float(of_plain.norm())
    each = losses_of("triton", hidden.detach(), targets, head)
    torch.testing.assert_close(each.sum(), plain.detach(), rtol=1e-3, atol=1e-3)
