"""How long short work takes on a card."""

from collections.abc import Callable
from statistics import median

import torch


def milliseconds(work: Callable[[], object], repeats: int = 30) -> float:
    """The median of some repeats, which are launched one behind the other, after three to warm up."""
    times = []
    for _ in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return median(start.elapsed_time(end) for start, end in times[3:])
