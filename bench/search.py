"""Is the chosen execution the fastest one? Times a grid of executions of one model and compares the planner's choice.

usage: python bench/search.py MODEL_DIR DATA --grid-only --json FILE [--graphs yes|no] [--rematerialize yes|no] ...
       python bench/search.py MODEL_DIR DATA --caps 8 --grid FILE [FILE ...]

For each point of the grid (token budget x layers recomputed x loss kernel x switches) the heaviest
micro-batch of the data gives the peak, and a few ordinary steps give the time. For a cap the fastest point that
fits is compared with what the planner chooses there: before anything was measured, and after a preflight. Both are
timed in one process; one cap a process, since what the driver holds for CUDA graphs stays with it.
"""

import argparse
import json
import random
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from in_process import Loaded, plan_of
from switches import SWITCHES, also

import qlora_core.memory.cuda_graphs
from qlora_core.execution.limits import Limits
from qlora_core.train.preflight import PreflightMeasurement, ProbePrompt
from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import MeasuredEvent
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB
from qlora_run.planner import retuned
from qlora_run.planner.observe import calibrated_by
from qlora_run.supervise.tuner import measured_of

qlora_core.memory.cuda_graphs.CAPTURED_AT_ONCE = 99  # a long run has captured every size; a few steps would not

NAMES = ("token_budget", "layers_recomputed", "layers_dequantized", "loss_kernel", *SWITCHES.values())


def grid(layers: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The executions to time: nothing is offloaded where nothing recomputes, or in a graph."""
    counts = sorted({round(layers * part / options.parts) for part in range(options.parts + 1)})
    usual = (False, True) if torch.cuda.is_available() else (False,)
    asked = (getattr(options, word) for word in SWITCHES)
    switches = [(each == "yes",) if each else usual for each in asked]
    choices = product(options.budgets, counts, options.dequantized, options.kernels, *switches)
    points = [dict(zip(NAMES, choice, strict=True)) for choice in choices]
    return [p for p in points if not p["offload_activations"] or (p["layers_recomputed"] and not p["cuda_graphs"])]


class Bench:
    """One loaded model whose executions are timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.values = {
            "model": options.model,
            "data": (options.data,),
            "method": options.method,
            "examples_per_step": options.examples_per_step,
            "val_size": 0.0,
        }
        self.loaded: Loaded | None = None
        self.seen: dict[str, dict[str, Any]] = {}

    def plan(self, **more: Any) -> RunPlan:
        """A plan with some settings given."""
        return plan_of(self.values | {"output": self.options.output} | more)

    def point(self, execution: dict[str, Any]) -> dict[str, Any]:
        """Peak and time of an execution; ``{"oom": True}`` where the card has no room for it."""
        key = json.dumps(execution, sort_keys=True)
        if key not in self.seen:
            self.seen[key] = execution | self._measure(execution)
            if self.options.json:
                with self.options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self.seen[key]) + "\n")
        return self.seen[key]

    def _measure(self, execution: dict[str, Any]) -> dict[str, Any]:
        try:
            plan = self.plan(**execution)
        except QloraRunError as error:
            return {"refused": error.message}
        self.loaded = self.loaded or Loaded.of(plan)
        self.loaded.clear()
        trainer, _ = self.loaded.trainer(plan, Path(self.options.output))
        prompt = ProbePrompt(prompt_ids=(1,), stop_ids=(0,))
        measurement = PreflightMeasurement(trainer, prompt, time.monotonic(), complete=False)
        trainer.job.loaded.model.train()
        try:
            measurement._part("step", measurement._heaviest_step)
            if trainer.execution.limits != Limits.of(plan.execution_values()):
                return {"oom": True}
            seconds = self._seconds(trainer, measurement)
            outside = trainer.job.memory.outside_now_bytes()
            peak = measurement.peaks.get("step", 0) + outside
            return {"peak_bytes": peak, "outside_bytes": outside, "seconds": seconds}
        except torch.OutOfMemoryError:
            return {"oom": True}
        finally:
            trainer.optimizer = None
            trainer.job.loaded.model.zero_grad(set_to_none=True)

    def _seconds(self, trainer: Any, measurement: PreflightMeasurement) -> float:
        """Mean time of a few ordinary steps, optimizer step included, after the same steps once to warm up."""
        rng, count = random.Random(1), self.options.examples_per_step
        order = list(range(len(trainer.job.train)))
        rng.shuffle(order)
        times = []
        steps = range(self.options.steps)
        for number in [*steps, *steps]:  # the first time, graphs are captured
            rows = [trainer.job.train[i] for i in order[number * count : (number + 1) * count]]
            trainer.job.memory.wait()
            start = time.perf_counter()
            trainer.job.loaded.model.zero_grad(set_to_none=True)
            float(trainer.execution.run(rows).loss)
            measurement._optimizer_step()
            trainer.job.memory.wait()
            times.append(time.perf_counter() - start)
        return sum(times[len(steps) :]) / len(steps)

    def chosen(self, cap_gib: float) -> list[tuple[str, dict[str, Any], int]]:
        """What the planner takes under a cap and the peak it expects: at first, and after its preflight."""
        budget = int(cap_gib * GIB)
        plan = self.plan(vram_budget_bytes=budget)
        again = self._after_preflight(plan)
        return [(name, execution_of(p), p.memory.peak_bytes) for name, p in (("plan", plan), ("preflight", again))]

    def _after_preflight(self, plan: RunPlan) -> RunPlan:
        self.loaded = self.loaded or Loaded.of(plan)
        self.loaded.clear()
        trainer, _ = self.loaded.trainer(plan, Path(self.options.output))
        for _ in range(2):
            measurement = PreflightMeasurement(
                trainer, ProbePrompt(prompt_ids=(1,), stop_ids=(0,)), time.monotonic(), complete=False
            )
            measured = measurement.measure() | {"ceilings": measurement._ceilings()}
            event = MeasuredEvent(time_s=0.0, stage="preflight", **measured)
            plan = retuned(plan, calibrated_by(plan, measured_of(plan, event)))
            trainer.execution.change("bench", Limits.of(plan.execution_values()))
            trainer.optimizer = None
        return plan


def execution_of(plan: RunPlan) -> dict[str, Any]:
    """The part of a plan's execution that is searched."""
    return {name: getattr(plan.execution_values(), name) for name in NAMES}


def words(point: dict[str, Any]) -> str:
    """An execution in few words."""
    return f"{point['token_budget']} / {point['layers_recomputed']} / {point['loss_kernel']}{also(point)}"


def fits(point: dict[str, Any], outside_bytes: int, cap_gib: float) -> bool:
    """Whether a point of the grid has room, with no more outside of the allocator than any like it had."""
    return "seconds" in point and point["peak_bytes"] - point["outside_bytes"] + outside_bytes <= cap_gib * GIB


def best_of(points: list[dict[str, Any]], cap_gib: float) -> dict[str, Any] | None:
    """The fastest point that fits."""
    timed = [p for p in points if "seconds" in p]
    least = {g: min((p["outside_bytes"] for p in timed if p["cuda_graphs"] == g), default=0) for g in (False, True)}
    fitting = [p for p in timed if fits(p, least[p["cuda_graphs"]], cap_gib)]
    return min(fitting, key=lambda p: p["seconds"]) if fitting else None


def report(bench: Bench, caps: list[float], points: list[dict[str, Any]]) -> None:
    """A line for each cap and choice."""
    head = "| cap GiB | chosen | tokens / layers / loss | s a step | best of the grid | s a step | reached | peak GiB "
    print(head + "| expected |\n|" + " --- |" * 9)
    for cap in caps:
        try:
            chosen = bench.chosen(cap)
        except QloraRunError as error:
            print(f"| {cap:g} | refused: {error.message} |")
            continue
        taken = [(name, bench.point(execution), expected) for name, execution, expected in chosen]
        best = best_of(points, cap)
        if best is not None:
            best = bench.point({name: best[name] for name in NAMES})
        for name, point, expected in taken:
            if best is None or "seconds" not in point or "seconds" not in best:
                print(f"| {cap:g} | {name} | {words(point)} | {point} | {best} |")
                continue
            reached = best["seconds"] / point["seconds"]
            peaks = (f"{point['peak_bytes'] / GIB:.2f}", f"{expected / GIB:.2f}")
            cells = (f"{cap:g}", name, words(point), f"{point['seconds']:.3f}", words(best), f"{best['seconds']:.3f}")
            print("| " + " | ".join((*cells, f"{reached:.1%}", *peaks)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--caps", type=float, nargs="+", default=[8, 12, 16, 24, 48, 80])
    parser.add_argument("--method", default="qlora-4")
    parser.add_argument("--examples-per-step", type=int, default=8)
    parser.add_argument("--budgets", type=int, nargs="+", default=[640, 1024, 1536, 2048])
    parser.add_argument("--parts", type=int, default=4, help="steps from no layer recomputed to all")
    parser.add_argument("--dequantized", type=int, nargs="+", default=[0], help="layers whose weights stay dequantized")
    parser.add_argument("--kernels", nargs="+", default=["triton"])
    parser.add_argument("--steps", type=int, default=7, help="timed for each point, after as many to warm up")
    parser.add_argument("--limit-seconds", type=float, default=420, help="stop timing the grid after so long")
    for word, name in SWITCHES.items():
        parser.add_argument(f"--{word}", choices=["yes", "no"], help=f"only points with or without {name}")
    parser.add_argument("--grid-only", action="store_true")
    parser.add_argument("--grid", type=Path, nargs="+", default=[], help="points that were timed before")
    parser.add_argument("--output", default="runs/bench-search")
    parser.add_argument("--json", type=Path, help="add each point to this file as soon as it is timed")
    options = parser.parse_args()
    bench = Bench(options)
    lines = [line for path in options.grid for line in path.read_text(encoding="utf-8").splitlines()]
    usual = dict.fromkeys(SWITCHES.values(), False) | {"layers_dequantized": 0}
    before = [usual | json.loads(line) for line in lines]
    points = before or timed_grid(bench, options)
    if not options.grid_only:
        report(bench, options.caps, points)


def timed_grid(bench: Bench, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The points of the grid that there is time for."""
    start = time.monotonic()
    points = grid(bench.plan().model.num_layers, options)
    random.Random(0).shuffle(points)  # a grid cut short is still spread over the whole space
    for point in points:
        if time.monotonic() - start < options.limit_seconds:
            bench.point(point)
    print(f"{len(bench.seen)} of {len(points)} points in {time.monotonic() - start:.0f} s", flush=True)
    return list(bench.seen.values())


if __name__ == "__main__":
    main()
