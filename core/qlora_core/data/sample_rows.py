"""Which rows stand for a data set: its ends, and some drawn by a seed."""

from collections.abc import Sequence
from random import Random


def pick_rows(lengths: Sequence[int], wanted: int, seed: int) -> dict[int, tuple[str, ...]]:
    """At most ``wanted`` rows by their index, and what each stands for: first, longest, shortest, then random ones."""
    indices = range(len(lengths))
    ends = [("first", 0), ("longest", max(indices, key=lengths.__getitem__))]
    ends.append(("shortest", min(indices, key=lengths.__getitem__)))
    picked: dict[int, tuple[str, ...]] = {}
    for why, index in ends:
        if index in picked or len(picked) < wanted:
            picked[index] = (*picked.get(index, ()), why)
    drawn = Random(seed).sample(indices, min(len(indices), wanted + len(ends)))
    more = [index for index in drawn if index not in picked][: wanted - len(picked)]
    return picked | dict.fromkeys(more, ("random",))
