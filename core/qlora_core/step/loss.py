"""Cross entropy of supervised positions, without ever holding all their logits.

Shape legend: N scored tokens, H hidden size, V vocabulary. Every kernel takes the hidden states (N x H)
that predict the targets (N) and returns their summed loss in float32; all agree in value and gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

LOGIT_EDITS = ("logit_scale", "logits_scaling", "output_multiplier")
"""Settings by which some architectures change their logits in ways that only their own code knows."""


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
    config = model.config.get_text_config()
    module = model.get_output_embeddings()
    if module is None or any(getattr(config, name, None) not in (None, 1, 1.0) for name in LOGIT_EDITS):
        return None
    return Head(module=module, softcap=getattr(config, "final_logit_softcapping", None))


Kernel = Callable[[Tensor, Tensor, Head, int], Tensor]


def chunked(hidden: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
    """``chunk`` tokens at a time; a trained or adapted head computes its logits again in backward."""
    if head.frozen:
        scored: Tensor = _FrozenHead.apply(hidden, targets, head.weight, head.bias, head.softcap, chunk)  # type: ignore[no-untyped-call]
        return scored
    parts = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    losses = [checkpoint(_plain, h, t, head, use_reentrant=False) for h, t in parts]
    return torch.stack(losses).sum()


def _plain(hidden: Tensor, targets: Tensor, head: Head) -> Tensor:
    return cross_entropy(head.logits(hidden), targets, reduction="sum")


def torch_fused(hidden: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
    """torch's own fused kernel (2.13 on), which chunks when it is given options."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=min(chunk, len(targets)))
    return torch.nn.functional.linear_cross_entropy(
        hidden.to(head.weight.dtype), head.weight, targets, linear_bias=head.bias, reduction="sum", options=options
    ).float()


def liger(hidden: Tensor, targets: Tensor, head: Head, chunk: int) -> Tensor:
    """Liger's fused Triton kernel."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=head.softcap)
    scored: Tensor = loss(head.weight, hidden.to(head.weight.dtype), targets, head.bias)
    return scored.float()


KERNELS: dict[str, Kernel] = {"chunked": chunked, "torch": torch_fused, "liger": liger}


def usable(kernel: str, head: Head) -> bool:
    """Whether a kernel computes this head exactly; ``chunked`` always does."""
    return kernel == "chunked" or (head.frozen and (kernel == "liger" or head.softcap is None))


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
    ) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(targets), chunk):
                rows = slice(start, start + chunk)
                logits = torch.nn.functional.linear(hidden[rows].to(weight.dtype), weight, bias).float()
                loss, slope = _loss_and_slope(logits, targets[rows], softcap)
                total += loss
                gradient[rows] = slope.to(weight.dtype) @ weight
                del logits, slope  # else they live on beside the next tile
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0].to(gradient.dtype), None, None, None, None, None


def _loss_and_slope(logits: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Summed loss and its derivative in the uncapped logits; overwrites ``logits`` to save a copy of n x V."""
    if softcap:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
        bend = 1 - (logits / softcap) ** 2
    at = targets[:, None]
    log_total = logits.logsumexp(-1, keepdim=True)
    loss = (log_total - logits.gather(-1, at)).sum()
    slope = logits.sub_(log_total).exp_()
    slope.scatter_add_(-1, at, slope.new_full((len(at), 1), -1.0))
    return loss, slope * bend if softcap else slope
