"""How many tokens a row has and which are learned, without the tokens: what a plan needs to know of it."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from qlora_core.data.examples import Encoded, Rendered, first_inside, last_inside

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]


class TokenCounts(Struct, frozen=True):
    """The length of one example in ``tokens``, and the stretches [start, end) of tokens that are learned, in order."""

    tokens: int
    learned: tuple[Span, ...]

    @classmethod
    def of(cls, encoded: Encoded) -> "TokenCounts":
        """The extent of an example in tokens."""
        return cls(len(encoded.input_ids), tuple((start, end) for learned, start, end in encoded.runs() if learned))

    def learned_within(self, max_length: int) -> int:
        """Number of learned tokens among the first ``max_length``."""
        return sum(max(0, min(end, max_length) - start) for start, end in self.learned)


def token_counts_of(row: Rendered, tokens: "Encoding", stop_ids: Collection[int]) -> TokenCounts:
    """The extent of a row whose text was encoded."""
    spans: list[Span] = []
    if row.spans:
        offsets, ids = tokens.offsets, tokens.ids
        for start, end in row.spans:
            first = first_inside(start, offsets)
            spans.append((first, max(first, last_inside(end, offsets, ids, stop_ids))))
    return TokenCounts(len(tokens), _learned(spans, len(tokens), row.whole))


def _learned(spans: Sequence[Span], tokens: int, whole: bool) -> tuple[Span, ...]:
    """What is learned of so many tokens: the spans, or all but them; never the first token, and no empty stretch."""
    if whole:
        bounds = [0, *(bound for span in spans for bound in span), tokens]
        spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        if max(1, start) < end:
            joined.append((max(1, start), end))
    return tuple(joined)
