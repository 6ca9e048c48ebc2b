"""Tokens of one example and which of them are supervised: count in the loss."""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

from msgspec import Struct

Offsets = Sequence[tuple[int, int]]


class RenderedExample(NamedTuple):
    """A row as text.

    ``spans`` are the characters [start, end) that are supervised; with ``supervise_all`` the only ones that are not.
    ``asked`` are those that ask for the last answer.
    """

    text: str
    spans: list[tuple[int, int]]
    supervise_all: bool
    asked: tuple[int, int] | None = None


class TokenizedExample(Struct, frozen=True, kw_only=True):
    """One example in tokens: ``input_ids`` and ``supervised`` have one entry per token.

    ``supervised`` is what transformers' labels tell by any value but -100. ``truncated`` is whether tokens were cut
    off at the end. An example that is left without any supervised token teaches nothing and is to be dropped.
    """

    input_ids: list[int]
    supervised: list[bool]
    truncated: bool = False

    @property
    def supervised_tokens(self) -> int:
        """Number of supervised tokens."""
        return sum(self.supervised)

    def truncated_to(self, max_length: int | None) -> "TokenizedExample":
        """The first ``max_length`` tokens; itself where it is no longer than that."""
        if max_length is None or len(self.input_ids) <= max_length:
            return self
        return TokenizedExample(
            input_ids=self.input_ids[:max_length], supervised=self.supervised[:max_length], truncated=True
        )

    def segments(self) -> list[tuple[bool, int, int]]:
        """Stretches of tokens that are alike: (supervised, start, end), in order, together all tokens."""
        segments, start = [], 0
        for flag, group in groupby(self.supervised):
            end = start + sum(1 for _ in group)
            segments.append((flag, start, end))
            start = end
        return segments


def fill_spans(
    supervised: list[bool],
    value: bool,
    spans: Iterable[tuple[int, int]],
    offsets: Offsets,
    ids: Sequence[int],
    stop_ids: Collection[int],
) -> None:
    """Set ``supervised`` of the tokens that lie wholly inside the character spans [start, end) to ``value``, in place.

    ``offsets`` and ``ids`` are the tokens' characters and numbers; ``stop_ids`` those that may end an answer.
    """
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


def truncate_all(examples: Iterable[TokenizedExample], max_length: int) -> tuple[list[TokenizedExample], int]:
    """Examples cut to ``max_length`` tokens, without those that lost every supervised token, and how many those are."""
    truncated = [example.truncated_to(max_length) for example in examples]
    kept = [example for example in truncated if any(example.supervised)]
    return kept, len(truncated) - len(kept)
