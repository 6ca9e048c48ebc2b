"""How long a tile of logits takes to become losses and gradients: torch's words for it, and our kernel.

usage: python bench/cross_entropy.py [--tokens 256 512] [--vocabulary 151936] [--blocks 4096 8192 16384] [--warps 8 16]

*least* is what reading and writing the tile once takes at the rate that copies reach here. A CUDA card with Triton.
"""

import argparse
from itertools import product

import torch
from card_clock import milliseconds
from torch import Tensor

from qlora_core.kernels import logit_gradients


def line(title: str, tokens: int, logits: Tensor, targets: Tensor, kernel: logit_gradients.TileKernel) -> None:
    """One row of the table."""
    print(f"| {title} | {tokens:,} | {milliseconds(lambda: kernel(logits, targets, None)):.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--warps", type=int, nargs="+", default=[8, 16])
    options = parser.parse_args()
    print("| how | tokens | ms |\n| --- | --- | --- |")
    for tokens in options.tokens:
        logits = torch.randn(tokens, options.vocabulary, device="cuda", dtype=torch.bfloat16)
        targets, other = torch.randint(0, options.vocabulary, (tokens,), device="cuda"), torch.empty_like(logits)
        print(f"| least | {tokens:,} | {milliseconds(lambda to=other, of=logits: to.copy_(of)):.3f} |")
        line("words", tokens, logits, targets, logit_gradients.torch_cross_entropy)
        for logit_gradients.BLOCK, logit_gradients.WARPS in product(options.blocks, options.warps):
            title = f"kernel, blocks of {logit_gradients.BLOCK:,}, {logit_gradients.WARPS} warps"
            line(title, tokens, logits, targets, logit_gradients.TritonCrossEntropy())


if __name__ == "__main__":
    main()
