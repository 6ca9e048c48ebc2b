"""Whether numbers moved, or only their noise: two tests of Student's, at 5% two-sided."""

import math
from collections.abc import Sequence

from msgspec import Struct

T_95 = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
"""By degrees of freedom; from eleven on 2.2 at most, near enough to 2 for words."""
T_95_MORE = 2.1


class Move(Struct, frozen=True, kw_only=True):
    """A change and how far noise alone would carry it; infinite where too little is known to say."""

    change: float
    noise: float

    @property
    def certain(self) -> bool:
        """Whether it is more than noise."""
        return abs(self.change) > self.noise


def paired(before: Sequence[float], now: Sequence[float]) -> Move:
    """The mean change of the same things, measured twice."""
    changes = [n - b for b, n in zip(before, now, strict=True)]
    count, mean = len(changes), math.fsum(changes) / max(len(changes), 1)
    spread = math.fsum((change - mean) ** 2 for change in changes)
    error = math.sqrt(spread / (count - 1) / count) if count > 1 else math.inf
    return Move(change=mean, noise=_t(count - 1) * error if count > 1 else math.inf)


def trend(values: Sequence[float]) -> Move:
    """How far a line through values, one after the other, rises from the first to the last."""
    count = len(values)
    if count < 3:
        return Move(change=values[-1] - values[0] if values else 0.0, noise=math.inf)
    middle, mean = (count - 1) / 2, math.fsum(values) / count
    across = math.fsum((at - middle) ** 2 for at in range(count))
    slope = math.fsum((at - middle) * value for at, value in enumerate(values)) / across
    left = math.fsum((value - mean - slope * (at - middle)) ** 2 for at, value in enumerate(values))
    error = math.sqrt(left / (count - 2) / across)
    return Move(change=slope * (count - 1), noise=_t(count - 2) * error * (count - 1))


def _t(freedom: int) -> float:
    return T_95[freedom] if freedom < len(T_95) else T_95_MORE
