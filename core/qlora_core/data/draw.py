"""Which rows are taken where not all are: the same ones for the same seed, on every machine."""

import random
from collections.abc import Sequence


def drawn_order(rows: int, seed: int) -> list[int]:
    """All rows in the order in which they are drawn: the first N of it are a random sample of N."""
    keys = random.Random(seed)
    drawn = [keys.random() for _ in range(rows)]
    return sorted(range(rows), key=drawn.__getitem__)


def rows_of_share(share: float | int | None, rows: int) -> int:
    """How many of ``rows`` a fraction or a number of them is; a fraction of some rows is one at least."""
    if share is None:
        return rows
    return min(share, rows) if isinstance(share, int) else min(rows, max(1, round(share * rows)))


def apportioned(most: int, counts: Sequence[int]) -> list[int]:
    """``most`` rows taken of several sources in proportion to their ``counts``, each within one row of its share.

    The largest remainders are rounded up, of equal ones the earlier source's.
    """
    total = sum(counts)
    if total <= most:
        return list(counts)
    parts = [divmod(most * count, total) for count in counts]
    left = most - sum(whole for whole, _ in parts)
    order = sorted(range(len(counts)), key=lambda index: (-parts[index][1], index))
    rounded_up = set(order[:left])
    return [whole + (index in rounded_up) for index, (whole, _) in enumerate(parts)]


def filled(most: int, counts: Sequence[int]) -> list[int]:
    """``most`` rows taken of several sources one after another, as they are named."""
    taken: list[int] = []
    for count in counts:
        taken.append(min(count, most - sum(taken)))
    return taken
