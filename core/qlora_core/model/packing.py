"""Examples laid end to end in one row, without padding.

Shape legend: T tokens of the micro-batch, S sequences in it, N supervised tokens: those whose loss counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


class Example(Protocol):
    """A tokenized example: ids, and which of them are supervised, that is count in the loss."""

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids, in order."""

    @property
    def supervised(self) -> Sequence[bool]:
        """True where the token is supervised; the first one's is not looked at, for nothing predicts it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A micro-batch: ``input_ids`` and ``position_ids`` are 1 x T, positions restart at each sequence.

    ``boundaries`` (S + 1, int32) are the cumulative lengths in tokens, ``longest`` is that of the longest. The hidden
    state at ``supervised_at`` (N, the place before a supervised token) predicts that token, whose id is in ``targets``
    (N): the targets of cross entropy. ``lengths`` (S) are known without asking the device. All tensors but
    ``boundaries`` are int64. ``places`` (S) are those of the examples in the optimizer step number ``step``; none of
    what is no part of one.
    """

    input_ids: Tensor
    position_ids: Tensor
    boundaries: Tensor
    longest: int
    supervised_at: Tensor
    targets: Tensor
    lengths: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    step: int = 0

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]


def supervised_tokens(example: Example) -> int:
    """Tokens of an example whose loss counts: never its first, which nothing comes before."""
    return sum(example.supervised[1:])


def pack(examples: Sequence[Example], device: torch.device, pin_memory: bool = False) -> Packed:
    """Lay examples end to end. ``pin_memory`` copies to the device from page-locked memory, without waiting."""
    return pack_all([examples], device, pin_memory)[0]


def pack_all(batches: Sequence[Sequence[Example]], device: torch.device, pin_memory: bool = False) -> list[Packed]:
    """Lay the examples of each micro-batch end to end, and send all of them to the device in one copy."""
    laid = [_laid_out(examples) for examples in batches]
    values = torch.empty(sum(len(each.values) for each in laid), dtype=torch.long, pin_memory=pin_memory)
    np.concatenate([each.values for each in laid], out=values.numpy())
    there = values.to(device, non_blocking=pin_memory).split([len(each.values) for each in laid])
    return [_packed(each, part) for each, part in zip(laid, there, strict=True)]


class _LaidOut(NamedTuple):
    """One row of numbers: ids, positions, where supervised tokens are predicted, targets, boundaries in pairs."""

    values: Array
    tokens: int
    supervised: int
    lengths: tuple[int, ...]


def _laid_out(examples: Sequence[Example]) -> _LaidOut:
    lengths = np.array([len(example.input_ids) for example in examples], dtype=np.int64)
    ends = lengths.cumsum()
    starts = ends - lengths
    ids = np.concatenate([np.array(example.input_ids, dtype=np.int64) for example in examples])
    supervised = np.concatenate([np.array(example.supervised, dtype=bool) for example in examples])
    supervised[starts] = False
    targets_at = supervised.nonzero()[0]
    positions = np.arange(len(ids), dtype=np.int64) - starts.repeat(lengths)
    boundaries = np.zeros(2 * (len(examples) // 2 + 1), dtype=np.int32)
    boundaries[1 : len(examples) + 1] = ends
    return _LaidOut(
        values=np.concatenate([ids, positions, targets_at - 1, ids[targets_at], boundaries.view(np.int64)]),
        tokens=len(ids),
        supervised=len(targets_at),
        lengths=tuple(lengths.tolist()),
    )


def _packed(laid: _LaidOut, values: Tensor) -> Packed:
    """Views of a row that is on the device."""
    sizes = (laid.tokens, laid.tokens, laid.supervised, laid.supervised)
    ids, positions, supervised_at, targets, boundaries = values.split([*sizes, len(values) - sum(sizes)])
    return Packed(
        input_ids=ids[None],
        position_ids=positions[None],
        boundaries=boundaries.view(torch.int32)[: len(laid.lengths) + 1],
        longest=max(laid.lengths),
        supervised_at=supervised_at,
        targets=targets,
        lengths=laid.lengths,
    )
