"""Examples laid end to end in one row, without padding.

Shape legend: T tokens of the micro-batch, S sequences in it, N scored (supervised) tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


class Example(Protocol):
    """A tokenised example: ids, and which of them are learned."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids, in order."""

    @property
    def supervised(self) -> Sequence[bool]:
        """True where the token is learned; the first token never can be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A micro-batch: ``input_ids`` and ``position_ids`` are 1 x T, positions restart at each sequence.

    ``boundaries`` (S + 1, int32) are the cumulative lengths. The hidden state at ``scored_at`` (N) predicts
    ``targets`` (N).
    """

    input_ids: Tensor
    position_ids: Tensor
    boundaries: Tensor
    longest: int
    scored_at: Tensor
    targets: Tensor

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]


def supervised_tokens(example: Example) -> int:
    """How many tokens of an example are scored: its first token has nothing before it."""
    return sum(example.supervised[1:])


def pack(examples: Sequence[Example], device: torch.device, pin_memory: bool = False) -> Packed:
    """Lay examples end to end."""
    lengths = [len(example.input_ids) for example in examples]
    starts = [0, *accumulate(lengths)]
    targets_at = [
        start + offset
        for example, start in zip(examples, starts, strict=False)
        for offset, learned in enumerate(example.supervised)
        if learned and offset > 0
    ]
    ids = [token for example in examples for token in example.input_ids]
    positions = [position for length in lengths for position in range(length)]

    def move(values: Sequence[int], dtype: torch.dtype = torch.long) -> Tensor:
        tensor = torch.tensor(values, dtype=dtype)
        return (tensor.pin_memory() if pin_memory else tensor).to(device, non_blocking=pin_memory)

    return Packed(
        input_ids=move(ids)[None],
        position_ids=move(positions)[None],
        boundaries=move(starts, torch.int32),
        longest=max(lengths),
        scored_at=move([at - 1 for at in targets_at]),
        targets=move([ids[at] for at in targets_at]),
    )
