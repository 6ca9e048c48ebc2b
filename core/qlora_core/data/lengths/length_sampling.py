"""Token counts of many rows from those of a few: a seeded sample, and every row that could be the longest."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import NamedTuple, Protocol

from qlora_core.data.examples import RenderedExample
from qlora_core.data.lengths.token_counts import TokenCounts

MOST_COUNTED_ROWS = 4000  # up to here all rows are counted, which takes about a second
SAMPLE_ROWS = 1000
FEWEST_AT_ONCE = 32  # rows that are counted together while looking for the longest; more each time
NEIGHBOURS = 4  # rows shorter, and as many longer, of which one gives its counts

Count = Callable[[Sequence[RenderedExample]], list[TokenCounts]]


class UpperBounds(Protocol):
    """At most how many tokens texts have."""

    def count_words(self, texts: Sequence[str]) -> None:
        """Make the bounds of these texts exact, and those of others tighter."""

    def upper_bound(self, text: str, enough: int = 0) -> int:
        """At most how many tokens ``text`` has; a bound of no more than ``enough`` may be a loose one."""


class LengthSample(NamedTuple):
    """The token counts of rows, of which ``counted`` are their own and the others those of like rows.

    The longest is always a row's own, and so is each that is longer than the maximum, where they are not too many.
    """

    token_counts: list[TokenCounts]
    counted: int


def sample_lengths(
    rows: Sequence[RenderedExample], count: Count, bounds: UpperBounds | None, max_length: int, seed: int
) -> LengthSample:
    """The token counts of ``rows``: of many, those of a sample by ``seed`` and of all that could be the longest.

    All are counted where they are few, where there are no ``bounds`` to the lengths of others, or where no row of the
    sample keeps a supervised token within ``max_length``.
    """
    if bounds is None or len(rows) <= MOST_COUNTED_ROWS:
        return LengthSample(count(rows), len(rows))
    sample = sorted(Random(seed).sample(range(len(rows)), SAMPLE_ROWS))
    known = dict(zip(sample, count([rows[index] for index in sample]), strict=True))
    bounds.count_words([rows[index].text for index in sample])
    limit = _count_longest(rows, known, count, bounds, max_length)
    donors = {index: known[index] for index in sample if known[index].tokens <= limit}
    if not any(row_counts.supervised_within(max_length) for row_counts in donors.values()):
        return LengthSample(count(rows), len(rows))
    impute = _imputing(rows, donors)
    return LengthSample([known.get(index) or impute(index) for index in range(len(rows))], len(known))


def _count_longest(
    rows: Sequence[RenderedExample], known: dict[int, TokenCounts], count: Count, bounds: UpperBounds, max_length: int
) -> int:
    """Count rows until none is left that has more tokens than the longest one known, or is cut.

    Returns how many tokens the others have at most. The cut ones are left to the sample where they could be many.
    """

    def count_longer(than: int, could_be: Sequence[int]) -> None:
        bounds.count_words([rows[index].text for index in could_be])
        longer = [index for index in could_be if bounds.upper_bound(rows[index].text, than) > than]
        known.update(zip(longer, count([rows[index] for index in longer]), strict=True))

    longest = max(row_counts.tokens for row_counts in known.values())
    short = min(longest, max_length)
    most = {index: bounds.upper_bound(row.text, short) for index, row in enumerate(rows) if index not in known}
    order = sorted(most, key=lambda index: (-most[index], index))
    at_once = FEWEST_AT_ONCE
    while batch := [index for index in order[:at_once] if most[index] > longest]:
        count_longer(longest, batch)
        longest = max(row_counts.tokens for row_counts in known.values())
        order = order[len(batch) :]
        at_once *= 2
    cut = [index for index in most if most[index] > max_length and index not in known]
    if len(cut) > SAMPLE_ROWS:
        return longest
    count_longer(max_length, cut)
    return min(longest, max_length)


def _imputing(rows: Sequence[RenderedExample], donors: Mapping[int, TokenCounts]) -> Callable[[int], TokenCounts]:
    """What gives a row the counts of a donor whose text has about as many bytes (hot-deck imputation)."""
    sizes = {index: len(rows[index].text.encode()) for index in donors}
    ordered = sorted(donors, key=sizes.__getitem__)
    ordered_sizes = [sizes[index] for index in ordered]

    def impute(index: int) -> TokenCounts:
        size = len(rows[index].text.encode())
        first = max(0, bisect_left(ordered_sizes, size) - NEIGHBOURS)
        last = min(len(ordered), bisect_right(ordered_sizes, size) + NEIGHBOURS)
        return donors[ordered[first + index % (last - first)]]

    return impute
