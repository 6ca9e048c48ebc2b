"""Does compiling each layer (torch.compile) pay beside the fused kernels? One micro-step of an 8B shape of 8 layers.

usage: python bench/compile.py      (a CUDA card; without one: a smoke test on the CPU)

Rows: the model's own layers with PEFT's adapters as they are and compiled, the fused kernels as they are, compiled,
and as CUDA graphs. *first s* is the first step's time, compilation included; no layer recomputes.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from kernels import CUDA, DEVICE, DTYPE, SIZES, Bench, Row, measure

from qlora_core.backends.model_kernels import graphed
from qlora_core.backends.packed_loss import causal_lm, decoder_of
from qlora_core.execution.limits import Limits
from qlora_core.kernels.dequantize import triton_dequantize
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import fuse_layers, liger_kernels
from qlora_core.memory.checkpointed_layers import decoder_layers
from qlora_core.model.packing import pack
from qlora_profiles.errors import first_line

VARIANTS = ("own", "own, compiled", "fused", "fused, compiled", "fused, graphs")


def bench_of(variant: str) -> Bench:
    """A model with a variant's kernels."""
    torch._dynamo.reset()
    bench = Bench()
    bench.take("+ host")
    if variant.startswith("fused"):
        dequantize = {"dequantize": triton_dequantize(DEVICE, DTYPE)} if CUDA else {}
        fuse_adapters(bench.model, decoder_of(bench.model), DTYPE, **dequantize)
        if CUDA:
            fuse_layers(causal_lm(bench.model), liger_kernels(), DTYPE, print)
    if variant.endswith("compiled"):
        for layer in decoder_layers(causal_lm(bench.model)):
            layer.compile(dynamic=True)
    return bench


def line(bench: Bench, variant: str, size: str) -> str:
    """A micro-step's first time and its later ones."""
    rows = [Row(length, seed) for seed, length in enumerate(SIZES[size])]
    loss_sum: Any = bench.loss_sum
    if variant.endswith("graphs"):
        limits = Limits(token_budget=sum(SIZES[size]), layers_recomputed=0, cuda_graphs=CUDA)
        loss_sum = replace(loss_sum, decode=graphed(loss_sum, limits, print))
    start = time.perf_counter()
    loss_sum(pack(rows, DEVICE, CUDA)).backward()
    if CUDA:
        torch.cuda.synchronize()
    first = time.perf_counter() - start
    loss, _, milliseconds, launched, allocated, _ = measure(bench.model, loss_sum, pack, rows, 0)
    cells = (variant, size, f"{first:.1f}", f"{milliseconds:.1f}", f"{launched}", f"{allocated:.2f}", f"{loss:.4f}")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    print("| layers | tokens | first s | ms | launches | allocated GiB | loss |\n|" + " --- |" * 7)
    for variant in VARIANTS:
        bench = bench_of(variant)
        for size in SIZES:
            try:
                print(line(bench, variant, size), flush=True)
            except Exception as error:  # what cannot be compiled shows itself in many ways
                print(f"| {variant} | {size} | {type(error).__name__}: {first_line(error)[:200]} |", flush=True)
        del bench


if __name__ == "__main__":
    main()
