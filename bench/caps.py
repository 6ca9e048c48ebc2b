"""The same recipe under several memory caps: does it finish, what does it take, and are the losses the same?

usage: python bench/caps.py MODEL_DIR DATA [--caps 8 12 24] [--steps 40] [--examples-per-step 8] [--output DIR]

Runs ``qlora-run --auto`` once for each cap (``--vram``), in 4 bits, and prints one line a run: the execution
that was planned, peak memory as the driver sees it, adaptations, tokens a second over the second half, and the
largest relative difference of any step's loss from the first run's.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from qlora_profiles import codec, events, run_folder
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB


def run(model: str, data: str, cap_gib: float, options: argparse.Namespace, output: Path) -> int:
    """One run of the product; its exit code."""
    command = [sys.executable, "-m", "qlora_run", "--auto", "--model", model, "--data", data, "--method", "qlora-4"]
    command += ["--vram", f"{cap_gib:g}GiB", "--output", str(output), "--max-steps", str(options.steps)]
    command += ["--examples-per-step", str(options.examples_per_step), "--val-size", "0", "--save-steps", "1000"]
    return subprocess.run(
        [*command, *options.extra], stdout=subprocess.DEVNULL if not options.show else None
    ).returncode


def line(cap_gib: float, code: int, output: Path, first: list[float] | None) -> tuple[str, list[float]]:
    """The row of the table, and the run's losses."""
    plan = codec.load(output / run_folder.PLAN, RunPlan)
    found = events.all_events(output / run_folder.EVENTS)
    steps = [e for e in found if isinstance(e, events.StepEvent)]
    if not steps:
        done = [e for e in found if isinstance(e, events.DoneEvent)]
        return f"| {cap_gib:g} | exit {code} | {done[-1].message if done else ''} |", []
    losses = [e.loss for e in steps]
    half = steps[len(steps) // 2 :]
    speed = sum(e.tokens for e in half) / sum(e.step_seconds for e in half)
    apart = max(abs(a - b) / b for a, b in zip(losses, first or losses, strict=True))
    adapted = sum(isinstance(e, events.AdaptationEvent) for e in found)
    execution = plan.execution_values()
    cells = (
        f"{cap_gib:g}",
        f"exit {code}, {len(steps)} steps",
        f"{execution.token_budget}",
        f"{execution.layers_recomputed}/{plan.model.num_layers}",
        f"{plan.memory.peak_bytes / GIB:.2f}",
        f"{max(e.vram_peak_bytes or 0 for e in steps) / GIB:.2f}",
        f"{adapted}",
        f"{speed:.0f}",
        f"{losses[0]:.4f} -> {losses[-1]:.4f}",
        f"{apart:.1e}",
    )
    return "| " + " | ".join(cells) + " |", losses


HEAD = "| cap GiB | end | token budget | recomputed | plan GiB | peak GiB | adaptations | tokens/s | loss | apart |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--caps", type=float, nargs="+", default=[8, 12, 24])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--examples-per-step", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("runs/caps"))
    parser.add_argument("--show", action="store_true", help="show each run's own output")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further options of qlora-run")
    options = parser.parse_args()
    rows, first = [], None
    for cap in options.caps:
        output = options.output / f"cap-{cap:g}"
        code = run(options.model, options.data, cap, options, output)
        row, losses = line(cap, code, output, first)
        first = first or losses
        rows.append(row)
    print("\n".join([HEAD, "|" + " --- |" * HEAD.count(" | ") + " --- |", *rows]))


if __name__ == "__main__":
    main()
