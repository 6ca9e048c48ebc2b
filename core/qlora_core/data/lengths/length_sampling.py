"""Extents of many rows from those of a few: a seeded sample, and every row that could be the longest."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple, Protocol

from qlora_core.data.examples import Rendered
from qlora_core.data.lengths.token_counts import TokenCounts

MOST_COUNTED_ROWS = 4000  # up to here all rows are counted, which takes about a second
SAMPLE_ROWS = 1000
FEWEST_AT_ONCE = 32  # rows that are counted together while looking for the longest; more each time
NEIGHBOURS = 4  # rows shorter, and as many longer, of which one lends its extent

Count = Callable[[Sequence[Rendered]], list[TokenCounts]]


class Bounds(Protocol):
    """At most how many tokens texts have."""

    def learn(self, texts: Sequence[str]) -> None:
        """Make the bounds of these texts tight, and those of others tighter."""

    def most(self, text: str, enough: int = 0) -> int:
        """A bound; one of no more than ``enough`` may be a loose one."""


class LengthSample(NamedTuple):
    """The extents of rows, in order, of which ``counted`` are their own and the others those of like rows.

    The longest is always a row's own, and so is each that is longer than the maximum, where they are not too many.
    """

    extents: list[TokenCounts]
    counted: int


def survey(rows: Sequence[Rendered], count: Count, bounds: Bounds | None, max_length: int, seed: int) -> LengthSample:
    """Count rows, all of them where they are few, or where there are no ``bounds`` to the lengths of others."""
    if bounds is None or len(rows) <= MOST_COUNTED_ROWS:
        return LengthSample(count(rows), len(rows))
    sample = sorted(Random(seed).sample(range(len(rows)), SAMPLE_ROWS))
    known = dict(zip(sample, count([rows[index] for index in sample]), strict=True))
    bounds.learn([rows[index].text for index in sample])
    limit = _count_longest(rows, known, count, bounds, max_length)
    lenders = {index: known[index] for index in sample if known[index].tokens <= limit}
    if not any(extent.learned_within(max_length) for extent in lenders.values()):
        return LengthSample(count(rows), len(rows))
    borrow = _lending(rows, lenders)
    return LengthSample([known.get(index) or borrow(index) for index in range(len(rows))], len(known))


def _count_longest(
    rows: Sequence[Rendered], known: dict[int, TokenCounts], count: Count, bounds: Bounds, max_length: int
) -> int:
    """Count rows until none is left that has more tokens than the longest one known, or is cut.

    Returns how many tokens the others have at most. The cut ones are left to the sample where they could be many.
    """

    def count_longer(than: int, could_be: Sequence[int]) -> None:
        bounds.learn([rows[index].text for index in could_be])
        longer = [index for index in could_be if bounds.most(rows[index].text, than) > than]
        known.update(zip(longer, count([rows[index] for index in longer]), strict=True))

    longest = max(extent.tokens for extent in known.values())
    short = min(longest, max_length)
    most = {index: bounds.most(row.text, short) for index, row in enumerate(rows) if index not in known}
    order = sorted(most, key=lambda index: (-most[index], index))
    at_once = FEWEST_AT_ONCE
    while batch := [index for index in order[:at_once] if most[index] > longest]:
        count_longer(longest, batch)
        longest = max(extent.tokens for extent in known.values())
        order = order[len(batch) :]
        at_once *= 2
    cut = [index for index in most if most[index] > max_length and index not in known]
    if len(cut) > SAMPLE_ROWS:
        return longest
    count_longer(max_length, cut)
    return min(longest, max_length)


def _lending(rows: Sequence[Rendered], lenders: Mapping[int, TokenCounts]) -> Callable[[int], TokenCounts]:
    """What gives a row the extent of one whose text has about as many bytes."""
    sizes = {index: len(rows[index].text.encode()) for index in lenders}
    ordered = sorted(lenders, key=sizes.__getitem__)
    ordered_sizes = [sizes[index] for index in ordered]

    def borrow(index: int) -> TokenCounts:
        size = len(rows[index].text.encode())
        first = max(0, bisect_left(ordered_sizes, size) - NEIGHBOURS)
        last = min(len(ordered), bisect_right(ordered_sizes, size) + NEIGHBOURS)
        return lenders[ordered[first + index % (last - first)]]

    return borrow
