"""Cross entropy of supervised positions, without ever holding all their logits.

Shape legend: N supervised tokens, H hidden size, V vocabulary. Every kernel takes the hidden states (N x H)
that predict the targets (N) and returns their summed loss in float32; all agree in value and gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from qlora_core.kernels.logit_gradients import TileKernel, TritonCrossEntropy, torch_cross_entropy, triton_cross_entropy
from qlora_core.kernels.trial import attempt
from qlora_core.model.parts import family_of
from qlora_core.session.fallback import Unsuited, Warn


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The output layer, and the cap that some models put on its logits (tanh, Gemma 2)."""

    module: nn.Module
    softcap: float | None = None

    @property
    def frozen(self) -> bool:
        """True for a plain linear layer that is not trained."""
        return type(self.module) is nn.Linear and not self.weight.requires_grad

    @property
    def weight(self) -> Tensor:
        """V x H."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def bias(self) -> Tensor | None:
        """V, or none."""
        bias = getattr(self.module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def logits(self, hidden: Tensor) -> Tensor:
        """N x V in float32."""
        logits: Tensor = self.module(hidden).float()
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def head_of(model: Any) -> Head | None:
    """The model's head, or ``None`` where its logits are more than a linear layer and a cap."""
    config, family = model.config.get_text_config(), family_of(model)
    module = model.get_output_embeddings()
    if module is None or any(getattr(config, name, None) not in (None, 1, 1.0) for name in family.logit_scales):
        return None
    return Head(module=module, softcap=getattr(config, family.logit_cap, None) if family.logit_cap else None)


Kernel = Callable[[Tensor, Tensor, Head, int], Tensor]


def chunked(hidden: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
    """``chunk`` tokens at a time; a trained or adapted head computes its logits again in backward.

    Args: hidden states (N x H), targets (N), the head, and tokens of a tile. The result is a sum of nats, a scalar.
    """
    if head.frozen:
        return _frozen(hidden, targets, head, chunk, torch_cross_entropy)
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    losses = [checkpoint(_plain, h, t, head, use_reentrant=False) for h, t in parts]
    return torch.stack(losses).sum()


def _plain(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    return cross_entropy(head.logits(hidden), targets, reduction="sum")


def triton(hidden: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
    """The same with a frozen head, whose logits our kernel turns into gradients where they lie.

    Raises:
        ImportError: there is no Triton.
        ArithmeticError: the kernel makes other numbers than torch.
    """
    return _frozen(hidden, targets, head, chunk, _triton_kernel(head))


def _frozen(hidden: Tensor, targets: Tensor, head: Head, chunk: int, kernel: TileKernel) -> Tensor:
    rest = head.weight, head.bias, head.softcap, chunk, kernel
    total: Tensor = _FrozenHead.apply(hidden, targets, *rest)  # type: ignore[no-untyped-call]
    return total


def losses_of(kernel: str, hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Each token's loss (N, float32, nats) without a gradient, for as many as fit a tile."""
    if kernel == "triton":
        return _triton_kernel(head).losses(head.module(hidden), targets, head.softcap)
    return cross_entropy(head.logits(hidden), targets, reduction="none")


KERNELS: dict[str, Kernel] = {"chunked": chunked, "triton": triton}


def usable_kernel(kernel: str, head: Head, warn: Warn) -> str:
    """The kernel for this head, by its name: the one asked for or, which ``warn`` is told, ``chunked``."""

    def tried() -> str:
        if kernel not in KERNELS or (kernel == "triton" and not head.frozen):
            raise Unsuited("not for this model's head")
        if kernel == "triton":
            _triton_kernel(head)
        return kernel

    return attempt(f"the loss ({kernel})", tried, "chunked", instead="chunked", warn=warn)


def _triton_kernel(head: Head) -> TritonCrossEntropy:
    return triton_cross_entropy(head.weight.device, head.weight.dtype, len(head.weight), head.softcap)


class _FrozenHead(torch.autograd.Function):
    """Loss and its gradient in one pass, possible because nothing in the head is trained.

    The gradient of the sum is softmax minus one-hot, times the weight; it is kept (N x H) and scaled in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        chunk: int,
        kernel: TileKernel,
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), chunk):
                rows = slice(start, start + chunk)
                seen = hidden[rows].to(weight.dtype)  # and no name for the logits: whoever reads them lets them go
                losses, logit_gradient = kernel(torch.nn.functional.linear(seen, weight, bias), targets[rows], softcap)
                total += losses.sum()
                gradient[rows] = logit_gradient @ weight
                del logit_gradient  # else it lives on beside the next tile
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None, None, None, None
