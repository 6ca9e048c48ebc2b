"""Tokens of one example and which of them are learned."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct

Offsets = Sequence[tuple[int, int]]


class Rendered(NamedTuple):
    """A row as text: ``spans`` are the characters to learn, or, for a ``whole`` row, those not to learn."""

    text: str
    spans: list[tuple[int, int]]
    whole: bool


class Encoded(Struct, frozen=True, kw_only=True):
    """One example in tokens: ``input_ids`` and ``supervised`` have one entry per token.

    ``cut`` is whether tokens were cut off at the end. An example without any supervised token teaches
    nothing; whoever made it cut it away, and it is to be dropped.
    """

    input_ids: list[int]
    supervised: list[bool]
    cut: bool = False

    @property
    def supervised_tokens(self) -> int:
        """Number of tokens that are learned."""
        return sum(self.supervised)

    def cut_to(self, max_length: int | None) -> "Encoded":
        """The first ``max_length`` tokens; itself where it is no longer than that."""
        if max_length is None or len(self.input_ids) <= max_length:
            return self
        return Encoded(input_ids=self.input_ids[:max_length], supervised=self.supervised[:max_length], cut=True)

    def runs(self) -> list[tuple[bool, int, int]]:
        """Stretches of tokens alike: (supervised, start, end)."""
        runs, start = [], 0
        for flag, group in groupby(self.supervised):
            end = start + sum(1 for _ in group)
            runs.append((flag, start, end))
            start = end
        return runs


def mark(
    supervised: list[bool],
    value: bool,
    spans: Iterable[tuple[int, int]],
    offsets: Offsets,
    ids: Sequence[int],
    stop_ids: Collection[int],
) -> None:
    """Set the tokens that lie wholly inside the character spans [start, end) to ``value``."""
    for start, end in spans:
        first = first_inside(start, offsets)
        last = max(first, last_inside(end, offsets, ids, stop_ids))
        supervised[first:last] = [value] * (last - first)


def first_inside(start: int, offsets: Offsets) -> int:
    """The first token of a span that begins at the character ``start``."""
    return bisect_left(offsets, (start,))


def last_inside(end: int, offsets: Offsets, ids: Sequence[int], stop_ids: Collection[int]) -> int:
    """The token behind the last one of a span that ends in front of the character ``end``.

    A stop token belongs to its span even where it swallows the white space behind it.
    """
    last = bisect_left(offsets, (end,))
    while last and offsets[last - 1][1] > end and ids[last - 1] not in stop_ids:
        last -= 1
    return last


def cut_all(encoded: Iterable[Encoded], max_length: int) -> tuple[list[Encoded], int]:
    """Examples cut to ``max_length`` tokens, without those that lost every supervised token, and their number."""
    cut = [example.cut_to(max_length) for example in encoded]
    kept = [example for example in cut if any(example.supervised)]
    return kept, len(cut) - len(kept)
