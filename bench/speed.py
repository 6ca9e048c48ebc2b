"""Ours beside what somebody would run instead: the same model, rows, examples a step and memory cap.

usage: python bench/speed.py --model DIR --data FILE [--cap-gib 12] [--examples-per-step 8] [--steps 20]
       python bench/speed.py --tiny            about a minute on a CPU, with the demo's model

Each contender runs in a process of its own: ours, and those of TRL, Unsloth and a plain loop that are installed
and asked for (``--only``; ours-unsloth is ours on the Unsloth backend). Peers run in up to three ways:

  default  the notebook's recipe: batch 2, gradients accumulated, all layers recomputed
  best     the same examples a step in the largest batch that fits, with and without recomputing, tried by hand; TRL
           with Liger's kernels where they are installed
  packing  rows of --max-length tokens made of several examples, as many of them as hold a step's tokens: the
           same work, but other examples in a step, so its losses are shown and not compared

All get the same tokens, targets, order, first adapter values and schedule, so losses must agree step by step:
those of the first step within --first-tolerance, their mean within --mean-tolerance (relative).
The floor is what the matrix products alone would take at the rate that a large one reaches here.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import speed_runs as runs
from speed_runs import Result

from qlora_profiles.units import GIB

PEERS = {"trl": ("trl", "triton"), "unsloth": ("unsloth", "triton"), "plain": ()}
"""Contenders that are not ours, and what each needs beside transformers."""
OURS = {"ours": [], "ours-unsloth": ["--backend", "unsloth"]}
RECOMPUTE = {"trl": (False, True), "unsloth": (False, "unsloth"), "plain": (False, True)}
DEFAULT_BATCH = 2
NEVER = 1_000_000


def main() -> int:
    options = parsed()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="qlora-speed-"))
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings_of(options)
    packed = (options.rows or options.steps * options.examples_per_step) if options.packed_rows else 0
    facts = runs.rows(settings, packed, folder)
    settings["data"] = facts["recipe"]["data"]
    results: list[Result] = []
    for who in contenders(options.only):
        for result in run(who, settings, facts, options, folder):
            results.append(result)
            print(_line(result, reference(results), options), file=sys.stderr, flush=True)  # the table comes at the end
    rate = runs.matmul_rate(facts, folder)
    print(report(results, facts, rate, options))
    if options.json:
        options.json.write_text(json.dumps(as_json(results, facts, rate, options), indent=1), encoding="utf-8")
    return 0 if all(agrees(r, reference(results), options) is not False for r in results) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data")
    parser.add_argument("--method", default="qlora-4", choices=["qlora-4", "lora"])
    parser.add_argument("--examples-per-step", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument("--cap-gib", type=float)
    parser.add_argument("--steps", type=int, help="20; 8 with --tiny")
    parser.add_argument("--warmup", type=int, help="first steps that are not timed: 5; 2 with --tiny")
    parser.add_argument("--rows", type=int, help="use the first N rows of the data; with --packed-rows: make N")
    parser.add_argument("--packed-rows", action="store_true", help="rows concatenated to full --max-length rows")
    parser.add_argument("--loss-on", default="all", choices=["all", "assistant"])
    parser.add_argument("--only", default="ours,trl,unsloth", help=f"of {','.join([*OURS, *PEERS])}")
    parser.add_argument("--ways", default="default,best,packing", help="of the peers' ways, those to run")
    parser.add_argument("--trial-steps", type=int, default=6, help="of each try for the peers' best batch")
    for name, kind in (("recomputed", "all layers recomputed"), ("stored", "none recomputed")):
        help_text = f"batches to try with {kind}, largest first; 0: do not try"
        parser.add_argument(f"--batches-{name}", type=int, nargs="+", help=help_text)
    parser.add_argument("--first-tolerance", type=float, default=5e-3)
    parser.add_argument("--mean-tolerance", type=float, default=1e-2)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short rows")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", help="keep logs and runs here")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="further options of qlora-run")
    options = parser.parse_args()
    if options.tiny:
        tiny(options)
    options.steps, options.warmup = options.steps or 20, options.warmup or 5
    if not options.model or not options.data:
        parser.error("--model and --data are needed (or --tiny)")
    if options.warmup >= options.steps:
        parser.error(f"--warmup {options.warmup}: less than --steps {options.steps}")
    return options


def tiny(options: argparse.Namespace) -> None:
    """The demo's model and rows, and few steps."""
    import qlora_core

    demo = Path(qlora_core.__file__).parent / "demo"
    options.model = options.model or str(demo / "base")
    options.data = options.data or str(demo / "data" / "train.jsonl")
    options.max_length, options.steps, options.warmup = min(256, options.max_length), options.steps or 8, 2
    options.rows = options.rows or (None if options.packed_rows else 200)
    options.only = "ours,plain,trl" if options.only == "ours,trl,unsloth" else options.only


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The comparison in the product's own settings."""
    settings = {
        "model": str(Path(options.model).resolve()),
        "data": [str(Path(options.data).resolve())],
        "method": options.method,
        "max_length": options.max_length,
        "max_steps": options.steps,
        "examples_per_step": options.examples_per_step,
        "loss_on": options.loss_on,
        "val_size": 0.0,
        "keep": "last",
        "save_steps": NEVER,
        "eval_steps": NEVER,
    }
    if options.rows:
        settings["max_samples"] = options.rows
    if options.cap_gib:
        settings["vram_budget_bytes"] = int(options.cap_gib * GIB)
    return settings


def contenders(only: str) -> list[str]:
    """Those asked for that are installed; says which are not."""
    names = [name.strip() for name in only.split(",")]
    unknown = [name for name in names if name not in OURS and name not in PEERS]
    if unknown:
        raise SystemExit(f"--only {','.join(unknown)}: of {', '.join([*OURS, *PEERS])}")
    needed = {name: PEERS.get(name.removeprefix("ours-"), ()) for name in names}
    missing = {name: [package for package in needed[name] if not find_spec(package)] for name in names}
    for name in names:
        if missing[name]:
            print(f"{name}: not installed: {', '.join(missing[name])}")
    return [name for name in names if not missing[name]]


def run(
    who: str, settings: dict[str, Any], facts: dict[str, Any], options: argparse.Namespace, folder: Path
) -> list[Result]:
    """Every way of one contender."""
    if who in OURS:
        return [runs.ours(who, settings, [*OURS[who], *options.extra], facts, folder)]
    ways = [way for way in options.ways.split(",") if not (options.packed_rows and way == "packing")]
    ways = [way for way in ways if not (who == "plain" and way == "packing")]
    return [_one_way(who, way, facts, options, folder) for way in ways]


def _one_way(who: str, way: str, facts: dict[str, Any], options: argparse.Namespace, folder: Path) -> Result:
    examples = options.examples_per_step
    if way == "default":
        batch = min(DEFAULT_BATCH, examples)
        job = _job(who, examples, batch, RECOMPUTE[who][1], options) | {"optimizer": _notebook_optimizer(who, facts)}
        return runs.peer(who, _how(way, job), job, facts, folder)
    rows = examples
    if way == "packing":
        rows = max(1, round(examples * facts["mean_tokens"] / options.max_length))
    return _best(who, way, rows, facts, options, folder)


def _best(who: str, way: str, rows: int, facts: dict[str, Any], options: argparse.Namespace, folder: Path) -> Result:
    """The fastest of a few that fit, run in full: for each way of recomputing the largest batch that fits."""
    tried: list[tuple[float, Result, dict[str, Any]]] = []
    failed: Result | None = None
    for recompute in RECOMPUTE[who]:
        for batch in batches_to_try(rows, options.batches_recomputed if recompute else options.batches_stored):
            job = _job(who, rows, batch, recompute, options) | {"packing": way == "packing"}
            job["padding_free"] = who == "trl" and batch > 1 and way == "best" and not options.packed_rows
            steps = min(options.steps, options.trial_steps)
            job["liger"] = who == "trl" and bool(find_spec("liger_kernel"))
            trial = runs.peer(who, _how(f"try {way}", job), job | {"steps": steps}, facts, folder)
            if trial.error and not trial.oom and job["liger"]:
                job["liger"] = False
                trial = runs.peer(who, _how(f"try {way}", job), job | {"steps": steps}, facts, folder)
            if trial.error is None and way == "packing" and not packs(trial, rows, options.max_length):
                trial = replace(trial, error="it turned packing off")
            if trial.error is None:
                tried.append((trial.tokens_per_second(steps // 2), trial, job))
                break
            failed = trial
            if not trial.oom:
                break
    for _, trial, job in sorted(tried, key=lambda found: -found[0]):
        if options.trial_steps >= options.steps:
            return replace(trial, how=_how(way, job))
        final = runs.peer(who, _how(way, job), job, facts, folder)
        if final.error is None:
            return final
        failed = final
    return replace(failed, how=way) if failed else Result(who=who, how=way, started=0.0, error="nothing to try")


def packs(result: Result, rows: int, max_length: int) -> bool:
    """Whether packed rows are about full: a peer that cannot pack here may go on with single examples."""
    return mean(result.tokens) > 0.5 * rows * max_length


def batches_to_try(count: int, asked: list[int] | None) -> list[int]:
    """Batches for ``count`` rows a step, largest first, each of which divides it; those asked for where any are."""
    divisors = [batch for batch in range(count, 0, -1) if count % batch == 0]
    return divisors[:5] if asked is None else [batch for batch in divisors if batch in asked]


def _job(who: str, rows: int, batch: int, recompute: Any, options: argparse.Namespace) -> dict[str, Any]:
    while rows % batch:
        batch -= 1
    return {
        "batch": batch,
        "accumulation": rows // batch,
        "recompute": recompute,
        "packing": False,
        "padding_free": False,
        "liger": False,
        "optimizer": "adamw_torch_fused",
        "steps": options.steps,
        "cap_bytes": int(options.cap_gib * GIB) if options.cap_gib else None,
    }


def _notebook_optimizer(who: str, facts: dict[str, Any]) -> str:
    return "adamw_8bit" if who == "unsloth" and facts["device"] == "cuda" else "adamw_torch_fused"


def _how(way: str, job: dict[str, Any]) -> str:
    recompute = {False: "none recomputed", True: "all recomputed"}.get(job["recompute"], "all offloaded")
    return f"{way} {job['batch']}×{job['accumulation']}, {recompute}{', Liger' * job['liger']}"


def reference(results: list[Result]) -> Result | None:
    """Our run, which the others are compared with."""
    return next((r for r in results if r.who in OURS and r.error is None), None)


def agrees(result: Result, ours: Result | None, options: argparse.Namespace) -> bool | None:
    """Whether a run learned what ours did; ``None`` where it cannot be told."""
    if ours is None or result is ours or result.error or not result.same_recipe:
        return None
    first, whole = apart(result, ours)
    same_tokens = result.tokens == ours.tokens
    return same_tokens and first <= options.first_tolerance and whole <= options.mean_tolerance


def apart(result: Result, ours: Result) -> tuple[float, float]:
    """Relative difference of the first losses, and of their means."""
    first = abs(result.losses[0] / ours.losses[0] - 1)
    return first, abs(mean(result.losses) / mean(ours.losses) - 1)


HEAD = "| who | how | tokens a step | real tokens/s | ours is | peak GiB | first step s | loss first, mean | same |"


def report(results: list[Result], facts: dict[str, Any], rate: float | None, options: argparse.Namespace) -> str:
    """The table, with the floor below it."""
    ours = reference(results)
    lines = [_title(facts, options), "", HEAD, "|" + " --- |" * (HEAD.count("|") - 1)]
    lines += [_line(result, ours, options) for result in results]
    return "\n".join([*lines, "", *floor(facts, rate)])


def _title(facts: dict[str, Any], options: argparse.Namespace) -> str:
    cap = f", at most {options.cap_gib:g} GiB" if options.cap_gib else ""
    rows = f"{facts['rows']} rows of {facts['mean_tokens']:.0f} tokens on average (longest {facts['longest_tokens']})"
    where = facts["card"] or "CPU"
    steps = f"{options.steps} steps of {options.examples_per_step} examples"
    return f"{Path(options.model).name}, {options.method}, {steps}, {rows}, {where}{cap}"


def _line(result: Result, ours: Result | None, options: argparse.Namespace) -> str:
    if result.error:
        return f"| {result.who} | {result.how} | {'out of memory' if result.oom else result.error} |" + " |" * 6
    speed = result.tokens_per_second(options.warmup)
    ratio = f"{ours.tokens_per_second(options.warmup) / speed:.2f}×" if ours else ""
    verdict = {True: "yes", False: "NO", None: ""}[agrees(result, ours, options)]
    if ours and verdict:
        verdict += " ({:.0e}, {:.0e})".format(*apart(result, ours))
        verdict += "" if result.tokens == ours.tokens else ": other examples"
    cells = (
        result.who,
        result.how + (f", {result.adaptations} adaptations" if result.adaptations else ""),
        f"{mean(result.tokens):,.0f}",
        f"{speed:,.0f}",
        ratio,
        "" if result.peak_bytes is None else f"{result.peak_bytes / GIB:.2f}",
        f"{result.first_step_seconds:.1f}",
        f"{result.losses[0]:.4f}, {mean(result.losses):.4f}",
        verdict,
    )
    return "| " + " | ".join(cells) + " |"


def floor(facts: dict[str, Any], rate: float | None) -> list[str]:
    """What the matrix products alone allow: frozen weights take 4 FLOP a value and token, 6 when recomputed."""
    if not rate:
        return []
    reached = (
        f"Floor at {rate / 1e12:.3g} TFLOP/s, a large product's rate here ({facts['params'] / 1e9:.3g} G weights): "
    )
    speeds = [rate / (passes * facts["params"]) for passes in (4, 6)]
    return [reached + f"{speeds[0]:,.0f} tokens/s; {speeds[1]:,.0f} where every layer recomputes."]


def as_json(
    results: list[Result], facts: dict[str, Any], rate: float | None, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything measured."""
    asked = {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()}
    return {"options": asked, "facts": facts, "matmul_flops": rate, "results": [asdict(r) for r in results]}


if __name__ == "__main__":
    raise SystemExit(main())
