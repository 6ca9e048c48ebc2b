"""One micro-step of an 8B shape of 8 layers in NF4: ms, launches, memory and gradient for each set of kernels.

usage: python bench/kernels.py      (a CUDA card; without one: a smoke test on the CPU)
"""

import gc
import time
from dataclasses import replace
from itertools import accumulate

import torch

from qlora_core.backends.model_kernels import graphed
from qlora_core.backends.packed_loss import causal_lm, decoder_of, packed_loss
from qlora_core.backends.peft.backend import add_adapters
from qlora_core.execution.limits import Limits
from qlora_core.kernels import attention as attention_module
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import fuse_layers, liger_kernels
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.model.bitsandbytes import quantise_layers
from qlora_core.model.lora_init import initialise
from qlora_core.model.packing import Packed, pack
from qlora_profiles.settings import Recipe

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
DTYPE = torch.bfloat16
ATTENTION = "varlen" if CUDA else "sdpa"
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}
if not CUDA:
    SHAPE |= {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 320,
    }
SIZES = {"1500": [188] * 7 + [184], "8192": [512] * 16} if CUDA else {"60": [20, 40]}
REPEATS = 8 if CUDA else 1


class Row:
    def __init__(self, length, seed):
        draw = torch.Generator().manual_seed(seed)
        self.input_ids = torch.randint(3, SHAPE["vocab_size"], (length,), generator=draw).tolist()
        self.supervised = [i >= length // 2 for i in range(length)]


def legacy_pack(examples, device, pin_memory=False):
    """What packing was before: Python lists and five copies."""
    lengths = [len(e.input_ids) for e in examples]
    starts = [0, *accumulate(lengths)]
    at = [
        s + o
        for e, s in zip(examples, starts, strict=False)
        for o, counts in enumerate(e.supervised)
        if counts and o > 0
    ]
    ids = [t for e in examples for t in e.input_ids]

    def move(values, dtype=torch.long):
        tensor = torch.tensor(values, dtype=dtype)
        return (tensor.pin_memory() if pin_memory else tensor).to(device, non_blocking=pin_memory)

    return Packed(
        input_ids=move(ids)[None],
        position_ids=move([p for n in lengths for p in range(n)])[None],
        boundaries=move(starts, torch.int32),
        longest=max(lengths),
        supervised_at=move([a - 1 for a in at]),
        targets=move([ids[a] for a in at]),
    )


def build():
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3", **SHAPE, use_cache=False)
    name = attention_module.implementation(ATTENTION, config)
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation=name)
    quantise_layers(model.get_decoder().layers, DEVICE, DTYPE)
    gc.collect()
    model = add_adapters(model, Recipe(model="", method="qlora-4", max_length=1, lora_r=16, lora_alpha=32.0))
    initialise(model, 0)
    draw = torch.Generator(DEVICE).manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()
            if ".lora_B." in name:
                parameter.normal_(0, 0.01, generator=draw)
    return model.train()


def sync():
    if CUDA:
        torch.cuda.synchronize()


def launches(step):
    if not CUDA:
        return 0
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step()
        sync()
    words = ("LaunchKernel", "GraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
    return sum(e.count for e in seen.key_averages() if any(word in e.key for word in words))


def measure(model, loss_sum, packing, rows, recomputed):
    recompute_layers(causal_lm(model), recomputed, False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    share = 1.0 / sum(sum(row.supervised[1:]) for row in rows)

    def step():
        loss = loss_sum(packing(rows, DEVICE, CUDA)) * share
        loss.backward()
        return loss.detach()

    for _ in range(3):
        model.zero_grad(set_to_none=True)
        loss = step()
    gradient = torch.cat([p.grad.flatten().float() for p in parameters]).cpu()
    loss = float(loss)
    counted = launches(step)
    sync()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        step()
        sync()
        times.append(time.perf_counter() - start)
    times.sort()
    allocated, reserved = (
        (torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30) if CUDA else (0.0, 0.0)
    )
    model.zero_grad(set_to_none=True)
    return loss, gradient, 1e3 * times[len(times) // 2], counted, allocated, reserved


class Bench:
    """One model whose kernels are replaced one after another, and the first row's result to compare with."""

    def __init__(self):
        self.model = build()
        self.loss_sum = packed_loss(
            self.model, attention=ATTENTION, kernel="chunked", chunk_tokens=256, autocast_dtype=DTYPE, warn=print
        )
        self.sharing, attention_module._sharing = attention_module._sharing, lambda device: None
        self.packing = legacy_pack
        self.expected = {}

    def take(self, variant):
        """Put the variant's kernels in; those of the ones before stay."""
        if variant == "+ adapters":
            fuse_adapters(self.model, decoder_of(self.model), DTYPE)
        if variant == "+ liger":
            try:
                fuse_layers(causal_lm(self.model), liger_kernels(), DTYPE, print)
            except ImportError as error:
                print("  no liger:", error)
        if variant == "+ host":
            self.packing, attention_module._sharing = pack, self.sharing

    def row(self, variant, size, recomputed):
        """Time one micro-step and print its line."""
        rows = [Row(length, seed) for seed, length in enumerate(SIZES[size])]
        used = self.loss_sum
        if variant == "+ graphs":
            limits = Limits(token_budget=sum(SIZES[size]), layers_recomputed=recomputed, cuda_graphs=CUDA)
            used = replace(used, decode=graphed(used, limits, print))
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()
        loss, gradient, *numbers = measure(self.model, used, self.packing, rows, recomputed)
        first = self.expected.setdefault((size, recomputed), (loss, gradient))
        apart = float((gradient - first[1]).norm() / first[1].norm())
        ms, counted, allocated, reserved = numbers
        cells = f"{ms:>9.2f}{counted:>10}{allocated:>8.2f}{reserved:>8.2f}{abs(loss / first[0] - 1):>11.1e}"
        print(f"{variant:16}{size:>7}{recomputed:>7}{cells}{apart:>11.1e}", flush=True)


def main():
    bench = Bench()
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if CUDA else 'cpu'}")
    head = f"{'ms':>9}{'launches':>10}{'alloc':>8}{'reserv':>8}{'loss diff':>11}{'grad diff':>11}"
    print(f"{'variant':16}{'tokens':>7}{'recomp':>7}{head}")
    for variant in ("baseline", "baseline again", "+ adapters", "+ liger", "+ host", "+ graphs"):
        bench.take(variant)
        for size in SIZES:
            for recomputed in (len(decoder_layers(bench.model)), 0):
                bench.row(variant, size, recomputed)


if __name__ == "__main__":
    main()
