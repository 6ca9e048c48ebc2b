"""Where the card's time goes in a run: how busy it is from step to step, and with which kernels.

usage: python bench/card_time.py MODEL_DIR DATA [--steps 16] [--first 8] [--set NAME=VALUE ...] [--kernels 20]

Trains with the product's own trainer, from step ``--first`` on under torch's profiler. *busy* is the time in which at
least one kernel or copy ran under it, over the time that steps took before it (without those in which CUDA graphs
were captured), both for each token; *floor* what the matrix products of the frozen weights alone would take (4 FLOP
for each weight of a layer and token, 6 where layers are recomputed) at the rate that a large product reaches here.
``--set`` gives settings of the product: ``--set vram_budget_bytes=25769803776``.
"""

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from in_process import Loaded, plan_of
from msgspec.structs import asdict
from switches import also
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

SIDE, SUSTAINED_SECONDS = 8192, 6.0
CLASSES = {
    "attention": r"flash|fmha|attn|cudnn::fusion",
    "dequantizing weights": r"Dequantize|^dequantize$",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|splitK",
    "norms, rotation, activation": r"rms_norm|rope|swiglu|silu|geglu|_per_head|^norm",
    "loss": r"cross_entropy|softmax",
    "optimizer": r"multi_tensor|adam|FusedAdam",
    "copies and fills": r"Memcpy|Memset|copy_|fill|CatArray",
}


def class_of(name: str) -> str:
    """What a kernel does, by its name."""
    return next((words for words, pattern in CLASSES.items() if re.search(pattern, name, re.I)), "elementwise, others")


class Watch(TrainerCallback):  # type: ignore[misc]
    """Profiles the steps from ``first`` on; the trainer's own times of those before."""

    def __init__(self, first: int, steps: int, trainer: Any) -> None:
        self.first, self.steps, self.trainer = first, steps, trainer
        self.profile: Any = None
        self.tokens = 0
        self.token_seconds = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.first:
            torch.cuda.synchronize()
            stats = self.trainer.execution.stats
            half = len(stats.step_tokens) // 2  # the first ones after a capture are slower
            self.token_seconds = sum(stats.step_seconds[half:]) / sum(stats.step_tokens[half:])
            self.profile = profile(activities=[ProfilerActivity.CUDA])
            self.profile.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.first < state.global_step < self.steps:
            self.tokens += self.trainer.latest.result.tokens
        if state.global_step == self.steps - 1:  # the last one saves
            torch.cuda.synchronize()
            self.profile.__exit__(None, None, None)


def kernels(seen: Any) -> list[tuple[str, float, float]]:
    """(name, start, end) in seconds of all that ran on the card."""
    events = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return sorted(((e.name, e.time_range.start / 1e6, e.time_range.end / 1e6) for e in events), key=lambda e: e[1])


def busy_seconds(found: list[tuple[str, float, float]]) -> float:
    """The union of the kernels' times."""
    busy, until = 0.0, found[0][1]
    for _, start, end in found:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy


def gaps(found: list[tuple[str, float, float]], steps: int) -> None:
    """Where nothing ran, in ms a step: by how long it lasted, and the neighbours of what lasted longest."""
    sizes: Counter[str] = Counter()
    between: Counter[tuple[str, str]] = Counter()
    until, before = found[0][2], found[0][0]
    for name, start, end in found[1:]:
        idle = 1e6 * (start - until)
        if idle > 0:
            sizes["up to 5 us" if idle <= 5 else "up to 50 us" if idle <= 50 else "longer"] += idle
            between[before[:60], name[:60]] += idle if idle > 50 else 0
        if end > until:
            until, before = end, name
    print("idle: " + ", ".join(f"{words} {idle / 1e3 / steps:.1f} ms" for words, idle in sizes.most_common()))
    for (left, right), idle in between.most_common(6):
        print(f"{idle / 1e3 / steps:8.2f} ms idle between {left} and {right}")


def sustained() -> float:
    """The rate that a large product keeps up, in FLOP/s, once the card is as warm and as short of power as in a run."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def rate() -> float:
        count, start = 0, time.monotonic()
        while time.monotonic() - start < SUSTAINED_SECONDS / 2:
            for _ in range(10):
                a @ b
            torch.cuda.synchronize()
            count += 10
        return 2 * SIDE**3 * count / (time.monotonic() - start)

    rate()
    return rate()


def report(watch: Watch, plan: Any, options: argparse.Namespace, rate: float) -> None:
    """Busy share, classes and the longest kernels, in ms a step."""
    found = kernels(watch.profile)
    steps = options.steps - options.first - 1
    busy = busy_seconds(found) / watch.tokens
    execution = plan.execution_values()
    params = plan.model.layer_linear_params
    part = execution.layers_recomputed / plan.model.num_layers
    floor = (4 + 2 * part) * params * watch.tokens / steps / rate
    print(
        f"{execution.token_budget} tokens, {execution.layers_recomputed} recomputed{also(asdict(execution))}, "
        f"{watch.tokens / steps:.0f} tokens a step"
    )
    captures = getattr(watch.trainer.execution.loss_function, "captures", 0)
    print(
        f"busy {busy / watch.token_seconds:.1%}: {1e3 * busy * watch.tokens / steps:.1f} ms a step; "
        f"{1 / watch.token_seconds:,.0f} tokens/s; captures {captures}"
    )
    print(
        f"floor {1e3 * floor:.1f} ms a step at {rate / 1e12:.0f} TFLOP/s; {sustained() / 1e12:.0f} TFLOP/s are what a "
        f"large product keeps up over {SUSTAINED_SECONDS:.0f} seconds"
    )
    times: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    classes: Counter[str] = Counter()
    for name, start, end in found:
        times[name] += end - start
        counts[name] += 1
        classes[class_of(name)] += end - start
    gaps(found, steps)
    for name, seconds in classes.most_common():
        print(f"| {name} | {1e3 * seconds / steps:.2f} |")
    for name, seconds in times.most_common(options.kernels):
        print(f"{1e3 * seconds / steps:8.2f} ms {counts[name] / steps:7.0f} x  {name[:150]}")


def value_of(text: str) -> tuple[str, Any]:
    """A setting from the command line."""
    name, _, value = text.partition("=")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, {"true": True, "false": False}.get(value, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--first", type=int, default=8)
    parser.add_argument("--set", nargs="+", default=[], type=value_of)
    parser.add_argument("--kernels", type=int, default=20)
    parser.add_argument("--output", default="runs/card-time")
    options = parser.parse_args()
    values = {"model": options.model, "data": (options.data,), "method": "qlora-4", "examples_per_step": 8}
    values |= {
        "val_size": 0.0,
        "max_steps": options.steps,
        "save_steps": 10**6,
        "output": options.output,
        "overwrite": True,
    }
    plan = plan_of(values | dict(options.set))
    from speed_peer import matmul

    rate = matmul("cuda")
    trainer, _ = Loaded.of(plan).trainer(plan, Path(options.output))
    watch = Watch(options.first, options.steps, trainer)
    trainer.add_callback(watch)
    trainer.train()
    report(watch, plan, options, rate)


if __name__ == "__main__":
    main()
