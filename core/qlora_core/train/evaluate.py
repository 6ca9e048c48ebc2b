"""Held-out loss: each row's own, and the mean over supervised tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_core.backends.protocol import LossFunction
from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.model.packing import Example, Packed, pack, supervised_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """``loss`` is nats per supervised token; ``row_losses`` in the rows' order."""

    loss: float
    row_losses: tuple[float, ...]


def evaluate(
    loss_function: LossFunction,
    examples: Sequence[Example],
    token_budget: int,
    device: torch.device,
    pin_memory: bool = False,
) -> HeldOut:
    """The loss of rows without gradient, in micro-batches of at most ``token_budget`` tokens or of one longer row.

    Raises:
        RuntimeError: memory ran out, among others.
    """
    batches = make_micro_batches([len(example.input_ids) for example in examples], token_budget)
    sums = _row_sums(loss_function, examples, batches, device, pin_memory)
    counts = [supervised_tokens(example) for example in examples]
    rows = tuple(total / max(1, count) for total, count in zip(sums, counts, strict=True))
    return HeldOut(loss=sum(sums) / max(1, sum(counts)), row_losses=rows)


def _row_sums(
    loss_function: LossFunction,
    examples: Sequence[Example],
    batches: list[list[int]],
    device: torch.device,
    pin_memory: bool,
) -> list[float]:
    sums = [0.0] * len(examples)
    for batch in batches:
        packed = pack([examples[i] for i in batch], device, pin_memory)
        for row, total in zip(batch, _split_sums(loss_function, packed, [examples[i] for i in batch]), strict=True):
            sums[row] = total
    return sums


def _split_sums(loss_function: LossFunction, packed: Packed, rows: Sequence[Example]) -> list[float]:
    losses: Tensor = loss_function.token_losses(packed)
    return [float(part.sum()) for part in losses.split([supervised_tokens(row) for row in rows])]
