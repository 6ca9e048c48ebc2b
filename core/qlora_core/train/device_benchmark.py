"""What a card reaches at most in matrix products, copies and kernel launches: a second of measuring.

A data sheet does not know of a laptop's power limit, of a slot with half its lanes or of a slow host.
"""

import time
from collections.abc import Callable

import torch

from qlora_profiles.facts import Ceilings
from qlora_profiles.units import MIB

SIDE = 4096
"""Rows and columns of the matrices: large enough for any card to reach its rate, 32 MiB each."""
COPIED_BYTES = 128 * MIB
PRODUCTS, COPIES, LAUNCHES = 12, 20, 400
ROUNDS = 3


def measure_device(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """The best of a few rounds each; needs about 350 MiB of the device for that long.

    A product of n x n matrices counts 2 n^3 operations; a copy counts its bytes twice, read and written.

    Raises:
        torch.OutOfMemoryError: there is not so much.
    """
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target, small = torch.empty_like(source), torch.zeros(32, device=device)
    multiplying = _best_seconds(device, lambda: torch.mm(left, right, out=product), PRODUCTS)
    copying = _best_seconds(device, lambda: target.copy_(source), COPIES)
    launching = _best_seconds(device, lambda: small.add_(1.0), LAUNCHES)
    return Ceilings(flops=2 * SIDE**3 / multiplying, copy_bytes=2 * COPIED_BYTES / copying, launch_seconds=launching)


def _best_seconds(device: torch.device, work: Callable[[], object], times: int) -> float:
    """Seconds of one ``work``, from the fastest of a few rounds of ``times``."""
    return min(_seconds(device, work, times) for _ in range(ROUNDS + 1)) / times


def _seconds(device: torch.device, work: Callable[[], object], times: int) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
