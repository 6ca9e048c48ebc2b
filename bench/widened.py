"""An adapter inside of the large product, by 16 more columns on both sides, beside our way: two products, one added to.

usage: python bench/widened.py [--tokens 4096 16384] [--rank 16]

For the shapes of an 8B, forward (x times a weight's transpose) and backward (a gradient times the weight): the large
product alone, the adapter's small product and the large one that adds itself to it, and one product whose inner size
is the rank larger. What would bring x and weights into that form costs nothing here, so it is the most it could gain.
"""

import argparse

import torch
from card_clock import milliseconds
from torch import Tensor

SHAPES = {"gate": (4096, 12288), "down": (12288, 4096), "query": (4096, 4096), "key": (4096, 1024)}


def draw(*shape: int) -> Tensor:
    """Random numbers as a model has them."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02


def ways(left: Tensor, right: Tensor, rank: int) -> list[float]:
    """The three times for left (T x K) times right (K x N)."""
    tokens, inner, outer = left.shape[0], left.shape[1], right.shape[1]
    out, small, b = draw(tokens, outer), draw(tokens, rank), draw(rank, outer)
    wide_left, wide_right = draw(tokens, inner + rank), draw(inner + rank, outer)
    if right.stride(0) == 1:  # a weight's transpose
        wide_right = draw(outer, inner + rank).t()

    def added() -> None:
        torch.mm(small, b, out=out)
        out.addmm_(left, right)

    return [
        milliseconds(lambda: torch.mm(left, right, out=out)),
        milliseconds(added),
        milliseconds(lambda: torch.mm(wide_left, wide_right, out=out)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    print("| product | tokens | alone ms | in two ms | widened ms |\n|" + " --- |" * 5)
    for tokens in options.tokens:
        totals = [0.0, 0.0, 0.0]
        for name, (inner, outer) in SHAPES.items():
            weight = draw(outer, inner)
            for way, left, right in (
                ("forward", draw(tokens, inner), weight.t()),
                ("backward", draw(tokens, outer), weight),
            ):
                times = ways(left, right, options.rank)
                totals = [total + each for total, each in zip(totals, times, strict=True)]
                print(f"| {name} {way} | {tokens:,} | " + " | ".join(f"{t:.3f}" for t in times) + " |")
        print(f"| all | {tokens:,} | " + " | ".join(f"{t:.3f}" for t in totals) + " |", flush=True)


if __name__ == "__main__":
    main()
