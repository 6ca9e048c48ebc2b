"""Attention of sequences of one length: the kernel for sequences end to end beside the one that takes them as a batch.

usage: python bench/attention.py [--rows 8x2048 4x2048 1x2048 1x16384] [--heads 32/8x128]

Milliseconds of forward and of forward with backward, what both add to the memory in use (MiB), how long the first
call takes, and how far results and gradients are apart (parts of the norm).
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from qlora_core.kernels.attention import end_to_end
from qlora_core.kernels.batched_attention import attend

CARD = torch.device("cuda")
HEAD = "| rows | kernel | forward ms | with backward ms | memory MiB | first call ms | apart |"


def milliseconds(work: Callable[[], object], times: int = 10) -> float:
    """Mean time on the card."""
    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) / times


def measure(rows: int, length: int, heads: int, key_heads: int, width: int) -> None:
    """A line for each of both kernels."""

    def random(count: int) -> Tensor:
        return torch.randn(rows * length, count, width, device=CARD, dtype=torch.bfloat16).requires_grad_()

    q, k, v = random(heads), random(key_heads), random(key_heads)
    upstream = torch.randn_like(q)
    ends = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=CARD)
    kernels: dict[str, Callable[[], Tensor]] = {
        "end to end": lambda: end_to_end(q, k, v, ends, length),
        "batch": lambda: attend(q, k, v, length, None),
    }
    expected: list[Tensor] = []
    for name, forward in kernels.items():

        def both(forward: Callable[[], Tensor] = forward) -> list[Tensor]:
            out = forward()
            return [out, *torch.autograd.grad(out, (q, k, v), upstream)]

        torch.cuda.synchronize()
        start = time.perf_counter()
        got = both()
        torch.cuda.synchronize()
        first = (time.perf_counter() - start) * 1e3
        expected = expected or got
        apart = max(float((g - e).float().norm() / e.float().norm()) for g, e in zip(got, expected, strict=True))
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        memory = (torch.cuda.max_memory_allocated() - before) / 2**20
        cells = (f"{rows} x {length}", name, f"{milliseconds(forward):.3f}", f"{milliseconds(both):.3f}")
        print("| " + " | ".join((*cells, f"{memory:.0f}", f"{first:.0f}", f"{apart:.1e}")) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=["8x2048", "4x2048", "1x2048", "1x16384"])
    parser.add_argument("--heads", default="32/8x128", help="query heads / key heads x their width")
    options = parser.parse_args()
    heads, rest = options.heads.split("/")
    key_heads, width = rest.split("x")
    print(HEAD + "\n|" + " --- |" * (HEAD.count("|") - 1))
    for rows in options.rows:
        measure(*map(int, rows.split("x")), int(heads), int(key_heads), int(width))


if __name__ == "__main__":
    main()
