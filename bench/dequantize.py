"""How long 4-bit weights take to dequantize: bitsandbytes' kernels and ours, alone and with the product they are for.

usage: python bench/dequantize.py [--tokens 64 512 1536 4096]      (a CUDA card with Triton)

The layers are an 8B's. Times are those of CUDA graphs of 20 calls each, so that launching does not count.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import linear

from qlora_core.kernels.dequantize import Dequantize, dequantized_weight, triton_dequantize
from qlora_core.model.bitsandbytes import linear_4bit

SHAPES = ((12288, 4096), (4096, 12288), (4096, 4096), (1024, 4096))
DTYPE = torch.bfloat16
CALLS = 20


def layer_of(rows: int, columns: int) -> Any:
    """A frozen 4-bit layer of random weights."""
    return linear_4bit(0.02 * torch.randn(rows, columns, dtype=DTYPE), "cuda", dtype=DTYPE)


@torch.no_grad()
def milliseconds(work: Callable[..., Any], *arguments: Any) -> float:
    """One call's time on the card."""
    for _ in range(3):
        work(*arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            work(*arguments)
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / CALLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[64, 512, 1536, 4096])
    options = parser.parse_args()
    ours = triton_dequantize(torch.device("cuda"), DTYPE)
    print(torch.cuda.get_device_name())
    print("| layer | same bits | bitsandbytes ms | ours ms | tokens | with bitsandbytes | with ours | product alone |")
    print("|" + " --- |" * 8)
    for rows, columns in SHAPES:
        layer = layer_of(rows, columns)
        weight = ours(layer)
        same = torch.equal(weight, dequantized_weight(layer))
        alone = f"{milliseconds(dequantized_weight, layer):.3f} | {milliseconds(ours, layer):.3f}"
        for tokens in options.tokens:
            x = torch.randn(tokens, columns, device="cuda", dtype=DTYPE)
            times = (
                milliseconds(layer, x),
                milliseconds(dequantized_product, ours, layer, x),
                milliseconds(linear, x, weight),
            )
            products = " | ".join(f"{ms:.3f}" for ms in times)
            print(f"| {rows} x {columns} | {same} | {alone} | {tokens:,} | {products} |", flush=True)


def dequantized_product(dequantize: Dequantize, layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The frozen layer's product with a weight that is dequantized for it."""
    return linear(x, dequantize(layer))


if __name__ == "__main__":
    main()
