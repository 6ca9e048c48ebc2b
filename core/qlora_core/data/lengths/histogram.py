"""Lengths in a handful of bins with round borders."""

from bisect import bisect_left
from collections.abc import Sequence

from msgspec import Struct

MOST_BINS = 10
ROWS_A_BIN = 4
"""Few rows get few bins."""
TAIL = 3
"""Lengths beyond so many times the 90th percentile share the last bin: a few giants leave the others their bars."""


class Bin(Struct, frozen=True, kw_only=True):
    """Rows whose length is from ``low`` to ``high``; from ``low`` on where ``high`` is ``None``."""

    low: int
    high: int | None
    rows: int


def histogram(ordered: Sequence[int]) -> tuple[Bin, ...]:
    """Ordered lengths in at most ten bins of one width, fewer for few rows, and one more for a long tail."""
    low, last = ordered[0], ordered[-1]
    most = min(last, TAIL * ordered[(len(ordered) - 1) * 9 // 10])
    step = round_step(low, most, min(MOST_BINS, 1 + len(ordered) // ROWS_A_BIN))
    begin, end = low // step * step, most // step * step + step
    bins = [_bin(ordered, edge, edge + step) for edge in range(begin, end, step)]
    tail = len(ordered) - bisect_left(ordered, end)
    return (*bins, Bin(low=end, high=None, rows=tail)) if tail else tuple(bins)


def _bin(ordered: Sequence[int], low: int, end: int) -> Bin:
    return Bin(low=low, high=end - 1, rows=bisect_left(ordered, end) - bisect_left(ordered, low))


def round_step(low: int, most: int, bins: int) -> int:
    """The smallest of 1, 2, 5, 10, 20, ... that lays [low, most] into at most so many bins, or two across a border."""
    scale = 1
    while True:
        for step in (scale, 2 * scale, 5 * scale):
            if most // step - low // step < max(bins, 2):
                return step
        scale *= 10
