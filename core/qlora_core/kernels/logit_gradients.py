"""The cross entropy of a tile of logits and its gradient: in words of torch, and by a kernel of our own.

Shape legend: n tokens of a tile, V vocabulary.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from qlora_core.kernels.trial import require_same
from qlora_core.kernels.triton_launch import Launcher

TileKernel = Callable[[Tensor, Tensor, float | None], tuple[Tensor, Tensor]]
"""From logits (n x V, which may be overwritten), targets (n) and a cap to losses (n, float32) and gradients (n x V)."""

BLOCK, WARPS = 8192, 8
"""The fastest of those tried on an H200 with 512 tokens and a vocabulary of 151,936 (bench/cross_entropy.py)."""
TRIAL_TOKENS = 3


def torch_cross_entropy(logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """In words of torch: a float32 copy of the tile, overwritten to save another.

    The gradient of a row is softmax minus one-hot; behind a cap c of c tanh(x / c) it is bent by 1 - (capped / c)^2.
    """
    given, logits = logits.dtype, logits.float()
    if softcap:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
        bend = 1 - (logits / softcap) ** 2
    at = targets[:, None]
    log_total = logits.logsumexp(-1, keepdim=True)
    losses = (log_total - logits.gather(-1, at))[:, 0]
    gradient = logits.sub_(log_total).exp_()
    gradient.scatter_add_(-1, at, gradient.new_full((len(at), 1), -1.0))
    return losses, (gradient * bend if softcap else gradient).to(given)


class TritonCrossEntropy:
    """The same by one kernel, which writes gradients over the logits. Raises: ImportError where there is no Triton."""

    def __init__(self) -> None:
        self._launch = Launcher(import_module("qlora_core.kernels.logit_gradients_triton").cross_entropy)

    def __call__(self, logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
        """Losses and gradients; the logits are gone."""
        return self._losses(logits, targets, softcap, True), logits

    def losses(self, logits: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
        """Losses alone (n, float32); the logits stay as they are."""
        return self._losses(logits, targets, softcap, False)

    def _losses(self, logits: Tensor, targets: Tensor, softcap: float | None, gradients: bool) -> Tensor:
        rows, columns = logits.shape
        losses = logits.new_empty(rows, dtype=torch.float32)
        kind = logits.device, logits.dtype, columns, bool(softcap), gradients
        numbers = softcap or 1.0, columns, bool(softcap), gradients, BLOCK
        self._launch(kind, rows, (logits, targets, losses), *numbers, warps=WARPS)
        return losses


@cache
def triton_cross_entropy(
    device: torch.device, dtype: torch.dtype, vocabulary: int, softcap: float | None
) -> TritonCrossEntropy:
    """The kernel, after it was compared with the words on random numbers, in the form that such logits need.

    Raises:
        ImportError: there is no Triton.
        ArithmeticError: it makes other numbers.
    """
    kernel, draw = TritonCrossEntropy(), torch.Generator().manual_seed(0)
    drawn = (3 * torch.randn(TRIAL_TOKENS, vocabulary, generator=draw)).to(device, dtype)
    targets = torch.randint(0, vocabulary, (TRIAL_TOKENS,), generator=draw).to(device)
    require_same(
        lambda logits, at: kernel(logits, at, softcap),
        lambda logits, at: torch_cross_entropy(logits, at, softcap),
        (drawn, targets),
    )
    return kernel
