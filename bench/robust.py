"""Does any run end out of memory? Random runs under random caps, a cap lowered in mid-run, a core that is killed.

usage: python bench/robust.py random MODEL_DIR DATA [--methods qlora-4 lora ...] [--runs 25] [--seed 0]
       python bench/robust.py faults MODEL_DIR DATA [--steps 12]

``random``: for each method the model is loaded once; each run draws a slice of the data, a longest example, examples
a step and a cap, is planned as a person's would be, measured and trained for a few steps by the product's own
trainer. A plan that is refused is right where its smallest execution does not fit either; where a plan was close the
card may refuse it before the first step.

``faults``: the losses of a run whose cap is lowered half way, and of one whose core is killed, beside those of an
undisturbed one.
"""

import argparse
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from in_process import Loaded, plan_of, rows_of, slice_of
from transformers import TrainerCallback

from qlora_core.train.preflight import Talk, preflight
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB


@dataclass
class Outcome:
    """How one random run ended."""

    asked: dict[str, Any]
    end: str
    adaptations: int = 0
    close: bool = False
    peak_bytes: int = 0


def one(loaded: list[Loaded], values: dict[str, Any], steps: int) -> Outcome:
    """Plan, measure and train; the model is loaded by the first run that gets so far."""
    try:
        plan = plan_of(values | {"max_steps": steps})
    except UserError as error:
        return Outcome(values, f"refused: {error.message}")
    output = Path(values["output"])
    if not loaded:
        loaded.append(first_loaded(values))
    held = loaded[0]
    held.clear()
    trainer, end = None, "refused by the card"
    try:
        trainer, data = held.trainer(plan, output)
        preflight(trainer, Talk(prompt_ids=data.prompt_ids("Hello"), stop_ids=data.stop_ids))
        end = "OOM"
        trainer.train()
        end = "trained"
    except (torch.OutOfMemoryError, EnvironmentProblem) as error:
        end += f": {str(error).splitlines()[0]}"
    finally:
        if trainer:
            trainer.optimizer = None
    found = events.all_events(output / run_folder.EVENTS)
    adapted = sum(isinstance(e, events.AdaptationEvent) for e in found)
    peak = trainer.job.memory.peak_bytes() if trainer else None
    return Outcome(values, end, adapted, plan.memory.close, peak or 0)


def first_loaded(values: dict[str, Any]) -> Loaded:
    """The model, with everything loaded that a run without CUDA graphs loads."""
    roomy = plan_of({**values, "vram_budget_bytes": None, "cuda_graphs": False, "max_length": 256, "max_steps": 2})
    held = Loaded.of(roomy)
    held.settle(roomy, Path(values["output"]) / "first")
    return held


def draw(rng: random.Random, options: argparse.Namespace, method: str, number: int) -> dict[str, Any]:
    """The wishes of one run; caps lie mostly where memory is tight."""
    folder = Path(options.output) / f"{Path(options.model).name}-{method}-{number}"
    data = slice_of(rows_of(Path(options.data)), rng, folder)
    cap = rng.uniform(*options.caps)
    return {
        "model": options.model,
        "data": (str(data),),
        "method": method,
        "output": str(folder),
        "max_length": rng.choice((256, 512, 1024, 2048, 4096)),
        "examples_per_step": rng.choice((1, 2, 4, 8, 16)),
        "vram_budget_bytes": int(cap * GIB),
        "val_size": 0.0,
        "overwrite": True,
    }


def _rematerializing(values: dict[str, Any]) -> RunPlan:
    """A plan that keeps as little as it can."""
    try:
        return plan_of(values | {"rematerialize_activations": True})
    except EnvironmentProblem:  # no kernels for that
        return plan_of(values)


def refused_rightly(loaded: list[Loaded], outcome: Outcome) -> bool:
    """Whether the smallest execution really runs out of memory under the cap of a refused run."""
    layers = {"token_budget": 64, "offload_activations": True, "loss_chunk_tokens": 32, "layers_dequantized": 0}
    budget = outcome.asked["vram_budget_bytes"]
    roomy_values = {**outcome.asked, **layers, "vram_budget_bytes": 4 * budget, "max_steps": 2}
    try:
        roomy = _rematerializing(roomy_values)
    except UserError:
        return True
    held = loaded[0] if loaded else first_loaded(outcome.asked)
    loaded[:] = [held]
    held.clear()
    trainer, _ = held.trainer(roomy, Path(outcome.asked["output"]))
    trainer.job.memory.budget_bytes = budget
    trainer.job.memory.cap()
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > (trainer.job.memory.allowed_bytes or 0):
        return True  # the model alone is larger
    try:
        trainer.train()
    except (torch.OutOfMemoryError, EnvironmentProblem):
        return True
    finally:
        trainer.optimizer = None
    memory = trainer.job.memory  # libraries load themselves when first used: what is outside is known by now
    return (memory.reserved_peak_bytes() or 0) + memory.outside_now_bytes() > budget


def random_runs(options: argparse.Namespace) -> None:
    """All runs, a line each, more where something is worth saying, and a line of counts."""
    rng, start = random.Random(options.seed), time.monotonic()
    names = ("trained", "close", "OOM", "refused", "refused by the card", "refused wrongly", "adapted", "over the cap")
    counts = dict.fromkeys(names, 0)
    for method in options.methods:
        loaded: list[Loaded] = []
        for number in range(options.runs):
            outcome = one(loaded, draw(rng, options, method, number), options.steps)
            counts[outcome.end.split(":")[0]] += 1
            counts["close"] += outcome.close
            counts["adapted"] += outcome.adaptations > 0
            over = outcome.peak_bytes - outcome.asked["vram_budget_bytes"]
            counts["over the cap"] += over > 0
            wrong = outcome.end.startswith("refused:") and not refused_rightly(loaded, outcome)
            counts["refused wrongly"] += wrong
            print(f"{method} {number}: {'WRONG ' * wrong}{outcome.end[:60]}", flush=True)
            if wrong or over > 0 or outcome.end.startswith("OOM"):
                print(wrong, over, outcome, flush=True)
        if loaded:
            loaded.pop().clear()
    name = Path(options.model).name
    print(f"| {name} | {' '.join(options.methods)} | {' | '.join(f'{v} {k}' for k, v in counts.items())} |")
    print(f"{time.monotonic() - start:.0f} s")


class Tighten(TrainerCallback):  # type: ignore[misc]
    """Lowers the cap at a step, as another program that takes memory would."""

    def __init__(self, trainer: Any, step: int, share: float) -> None:
        self.trainer, self.step, self.share = trainer, step, share

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        memory = self.trainer.job.memory
        if state.global_step == self.step and memory.device.type == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(self.share * torch.cuda.max_memory_reserved() / total)


def losses(folder: Path) -> dict[int, float]:
    """The last word on each step."""
    found = events.all_events(folder / run_folder.EVENTS)
    return {e.step: e.loss for e in found if isinstance(e, events.StepEvent)}


def faults(options: argparse.Namespace) -> None:
    """Three runs of one recipe, and how far their losses lie apart."""
    base = Path(options.output)
    wishes = {"model": options.model, "data": (options.data,), "method": options.methods[0], "examples_per_step": 8}
    wishes |= {"val_size": 0.0, "max_steps": options.steps, "overwrite": True, "save_steps": 2}
    plain = _command(wishes, base / "plain")
    subprocess.run(plain, check=True, stdout=subprocess.DEVNULL)
    _killed(_command(wishes, base / "killed"), base / "killed", options.steps // 2)
    plan = plan_of(wishes | {"output": str(base / "tightened")})
    held = Loaded.of(plan)
    trainer, _ = held.trainer(plan, base / "tightened")
    trainer.add_callback(Tighten(trainer, options.steps // 2, options.share))
    trainer.train()
    first = losses(base / "plain")
    for name in ("killed", "tightened"):
        other = losses(base / name)
        apart = max(abs(other[step] / first[step] - 1) for step in first)
        found = events.all_events(base / name / run_folder.EVENTS)
        adapted = [f"{e.step}: {e.cause} {e.after}" for e in found if isinstance(e, events.AdaptationEvent)]
        print(f"| {name} | {len(other)} of {len(first)} steps | apart {apart:.1e} | {'; '.join(adapted)} |")


def _command(wishes: dict[str, Any], output: Path) -> list[str]:
    switches = {name: value for name, value in wishes.items() if name not in ("model", "data")}
    words = [w for name, value in switches.items() for w in (f"--{name.replace('_', '-')}", str(value).lower())]
    words += ["--model", str(wishes["model"]), "--data", *wishes["data"]]
    return [sys.executable, "-m", "qlora_run", "--auto", *words, "--output", str(output)]


def _killed(command: list[str], output: Path, step: int) -> None:
    """Run the product and kill its core once, after ``step`` steps; the launcher is left alone."""
    launcher = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    done = False
    while launcher.poll() is None:
        time.sleep(0.05)
        if not done and len(losses(output)) >= step:
            children = psutil.Process(launcher.pid).children()
            for child in children:
                child.kill()
            done = bool(children)
    if launcher.returncode or not done:
        raise QloraRunError(f"the killed run ended with {launcher.returncode}, killed {done}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["random", "faults"])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--methods", nargs="+", default=["qlora-4"])
    parser.add_argument("--runs", type=int, default=25, help="for each method")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--caps", type=float, nargs=2, default=[2, 12], help="GiB, between which caps are drawn")
    parser.add_argument("--share", type=float, default=0.7, help="of its peak that a tightened run is left")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/bench-robust")
    options = parser.parse_args()
    {"random": random_runs, "faults": faults}[options.what](options)


if __name__ == "__main__":
    main()
