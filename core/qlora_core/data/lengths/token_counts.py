"""How many tokens a row has and which are supervised, without the tokens: what a plan needs to know of it."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from qlora_core.data.examples import RenderedExample, TokenizedExample, first_inside, last_inside

if TYPE_CHECKING:
    from tokenizers import Encoding

Span = tuple[int, int]


class TokenCounts(Struct, frozen=True):
    """The length of one example in ``tokens``, and the stretches [start, end) of supervised tokens, in order."""

    tokens: int
    supervised: tuple[Span, ...]

    @classmethod
    def of(cls, example: TokenizedExample) -> "TokenCounts":
        """The counts of an example whose tokens are known."""
        stretches = ((start, end) for supervised, start, end in example.segments() if supervised)
        return cls(len(example.input_ids), tuple(stretches))

    def supervised_within(self, max_length: int) -> int:
        """Number of supervised tokens among the first ``max_length``."""
        return sum(max(0, min(end, max_length) - start) for start, end in self.supervised)


def token_counts_of(row: RenderedExample, tokens: "Encoding", stop_ids: Collection[int]) -> TokenCounts:
    """The counts of a row whose text was encoded as ``tokens``; the same as those of its ``TokenizedExample``."""
    spans: list[Span] = []
    if row.spans:
        offsets, ids = tokens.offsets, tokens.ids
        for start, end in row.spans:
            first = first_inside(start, offsets)
            spans.append((first, max(first, last_inside(end, offsets, ids, stop_ids))))
    return TokenCounts(len(tokens), _stretches(spans, len(tokens), row.supervise_all))


def _stretches(spans: Sequence[Span], tokens: int, supervise_all: bool) -> tuple[Span, ...]:
    """What is supervised of so many tokens: the spans, or all but them; never the first token, and no empty stretch."""
    if supervise_all:
        bounds = [0, *(bound for span in spans for bound in span), tokens]
        spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        if max(1, start) < end:
            joined.append((max(1, start), end))
    return tuple(joined)
