"""One pass over a step: cut it and compute.

Every micro-batch is divided by the supervised tokens of the *whole* step, so any cut gives the same gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.model.packing import Example, Packed, pack_all, supervised_tokens
from qlora_core.session.ranks import SINGLE


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """``loss`` is nats per supervised token over the whole step (a device scalar until asked for).

    ``largest_tokens`` are those of the largest micro-batch.
    """

    loss: Tensor
    supervised_tokens: int
    tokens: int
    examples: int
    micro_batches: int
    largest_tokens: int
    lengths: tuple[int, ...]


class StepRunner:
    """Computes the gradient of one optimizer step into the parameters' ``grad``.

    Args:
        backward: accumulates gradients of a scalar (the trainer's, for loss scaling).
        device: that computes.
        pin_memory: whether micro-batches travel to it from pinned memory.
        total_supervised: from this process's supervised tokens of a step to those of all.
    """

    def __init__(
        self,
        *,
        backward: Callable[[Tensor], None],
        device: torch.device,
        pin_memory: bool,
        total_supervised: Callable[[int], int] = SINGLE.total,
    ) -> None:
        self._backward = backward
        self._device = device
        self._pin_memory = pin_memory
        self._total_supervised = total_supervised

    def run(
        self, examples: Sequence[Example], loss_sum: Callable[[Packed], Tensor], token_budget: int, step: int = 0
    ) -> StepResult:
        """The gradient of all ``examples`` together, in micro-batches of at most ``token_budget`` tokens.

        ``loss_sum`` is the summed loss of a micro-batch, ``step`` the number of the optimizer step. Gradients are added
        to those there are; a pass that runs out of memory leaves those of a part.

        Raises:
            RuntimeError: memory ran out, among others (``oom.is_out_of_memory`` tells).
        """
        lengths = [len(example.input_ids) for example in examples]
        own = sum(supervised_tokens(example) for example in examples)
        share = 1.0 / max(1, self._total_supervised(own))
        batches = make_micro_batches(lengths, token_budget)
        total = torch.zeros((), device=self._device)
        laid = pack_all([[examples[i] for i in batch] for batch in batches], self._device, self._pin_memory)
        for packed, batch in zip(laid, batches, strict=True):
            if len(packed.targets) == 0:
                continue
            loss = loss_sum(replace(packed, places=tuple(batch), step=step)) * share
            self._backward(loss)
            total += loss.detach()
        return StepResult(
            loss=total,
            supervised_tokens=own,
            tokens=sum(lengths),
            examples=len(examples),
            micro_batches=len(batches),
            largest_tokens=max(sum(lengths[i] for i in batch) for batch in batches),
            lengths=tuple(lengths),
        )
