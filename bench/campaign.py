"""Does a run survive what happens to it? Real runs on the CPU, killed or asked to end at random moments.

usage: python bench/campaign.py kills --count 200
       python bench/campaign.py signals --count 200
       python bench/campaign.py data|power ...          (campaign_data.py, campaign_power.py, with their own options)

Each trial starts the product on the demo's base, does something to its processes at a moment drawn from ``--seed``, and
gives the same command again until it is finished. Its losses and its adapter must be those of a run that nobody
disturbed to 1e-6, with no step too many or too few; one that was asked to end must have done so, and started nothing
again. Half of the trials have dropout. Ends with 1 where anything differs.
"""

import argparse
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy
import psutil
from safetensors.numpy import load_file

from qlora_profiles import events, run_folder
from qlora_profiles.errors import EXIT_INTERRUPTED, EXIT_OK

TOLERANCE = 1e-6
DROPOUTS = (0.0, 0.3)
MOST_STARTS = 8
MOST_STEPS_MORE = 4
"""Until a process that is asked to end hears of it; the steps of the demo take milliseconds."""
PATIENCE_SECONDS = 300
KILLS = ("core", "launcher", "both")
SIGNALS = ("group", "launcher", "core", "twice", "then killed")
ASKING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
LATE_SHARE = 0.6
"""Of the trials: disturbed a moment after a step, not after the start."""
OTHERS = {"data": "campaign_data", "power": "campaign_power"}


@dataclass
class Trial:
    """What was done to a run, and what is wrong with how it ended."""

    what: str
    dropout: float
    after_seconds: float
    after_step: int
    codes: list[int] = field(default_factory=list)
    at_step: int = 0
    faults: list[str] = field(default_factory=list)


@dataclass
class Reference:
    """A run that nobody disturbed."""

    losses: dict[int, float]
    adapter: dict[str, numpy.ndarray]
    seconds: float


def command(options: argparse.Namespace, output: Path, dropout: float) -> list[str]:
    """The product on the demo's base: checkpoints every other step, held-out rows, a merge."""
    demo = Path(str(files("qlora_core") / "demo"))
    words = {
        "model": demo / "base",
        "data": demo / "data" / "train.jsonl",
        "output": output,
        "method": "lora",
        "max-steps": options.steps,
        "examples-per-step": 4,
        "save-steps": 2,
        "eval-steps": 5,
        "val-size": 8,
        "lora-dropout": dropout,
        "workers": options.workers,
        "device": "cpu",
        "cpu-threads": 1,
    }
    given = [word for name, value in words.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "qlora_run", "--auto", *given, "--merge"]


def start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """A launcher at low priority, with nothing on its terminal."""
    with log.open("ab") as file:
        nice = [tool, "-n", "19"] if (tool := shutil.which("nice")) else []
        return subprocess.Popen(nice + words, stdin=subprocess.DEVNULL, stdout=file, stderr=file)


def losses_of(output: Path) -> dict[int, float]:
    """The last word on each step."""
    found = events.all_events(output / run_folder.EVENTS)
    return {event.step: event.loss for event in found if isinstance(event, events.StepEvent)}


def adapter_of(output: Path) -> dict[str, numpy.ndarray]:
    """The weights that were learned."""
    return dict(load_file(output / run_folder.ADAPTER / run_folder.ADAPTER_WEIGHTS))


def reference(options: argparse.Namespace, dropout: float) -> Reference:
    """An undisturbed run. Raises RuntimeError: it does not even end well."""
    output, began = options.output / f"undisturbed-{dropout}", time.monotonic()
    if start(command(options, output, dropout), options.output / "log.txt").wait(PATIENCE_SECONDS) != EXIT_OK:
        raise RuntimeError(f"the undisturbed run failed: {output}")
    return Reference(losses_of(output), adapter_of(output), time.monotonic() - began)


def disturb(launcher: "subprocess.Popen[bytes]", what: str, number: int, rng: random.Random) -> None:
    """Do ``what`` to a launcher and its core, with signal ``number``."""
    with suppress(psutil.Error):
        root = psutil.Process(launcher.pid)
        below = root.children(recursive=True)
        core = [p for p in below if "qlora_core" in p.cmdline()]
        reached = {"core": core, "launcher": [root]}.get(what, [root, *below])
        _send(reached, number)
        if what == "twice":
            time.sleep(rng.uniform(0.01, 0.9))
            _send(reached, number)
        if what == "then killed":
            time.sleep(rng.uniform(0.2, 4.0))
            _send([root, *below], signal.SIGKILL)


def _send(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def one(options: argparse.Namespace, number: int, known: Reference, trial: Trial, rng: random.Random) -> Trial:
    """Start, disturb, give the command again until it is finished, compare."""
    output = options.output / f"trial-{number}"
    words, log = command(options, output, trial.dropout), options.output / "log.txt"
    kind, _, sent = trial.what.partition(" by ")
    launcher = start(words, log)
    while launcher.poll() is None and max(losses_of(output), default=0) < trial.after_step:
        time.sleep(0.02)
    time.sleep(trial.after_seconds)
    before = max(losses_of(output), default=0)
    disturb(launcher, kind, getattr(signal, sent), rng)
    trial.codes.append(launcher.wait(PATIENCE_SECONDS))
    trial.at_step = max(losses_of(output), default=0)
    asked = sent != "SIGKILL"  # a core that is killed is started again, as it should be
    if asked and trial.codes == [EXIT_OK] and options.steps - before > MOST_STEPS_MORE:
        trial.faults.append(f"went on from step {before}")
    _check_end(trial, kind, sent, output)
    while trial.codes[-1] != EXIT_OK and len(trial.codes) < MOST_STARTS:
        trial.codes.append(start(words, log).wait(PATIENCE_SECONDS))
    _compare(trial, known, output)
    if not trial.faults:
        shutil.rmtree(output)
    return trial


def _check_end(trial: Trial, kind: str, sent: str, output: Path) -> None:
    """Of a run that was asked to end, not killed: it ended as one that was interrupted, or had ended already."""
    if sent == "SIGKILL" or kind == "then killed":
        return
    if trial.codes[0] not in (EXIT_OK, EXIT_INTERRUPTED) and not _too_early(trial, sent):
        trial.faults.append(f"asked to end, exit {trial.codes[0]}")
    ends = [e for e in events.all_events(output / run_folder.EVENTS) if isinstance(e, events.DoneEvent)]
    if trial.codes[0] == EXIT_OK and not (ends and ends[-1].status == "finished"):
        trial.faults.append("asked to end, exit 0 unfinished")
    starts = sum(isinstance(e, events.RunEvent) for e in events.all_events(output / run_folder.EVENTS))
    if starts > 1:
        trial.faults.append("asked to end, and started again")


def _too_early(trial: Trial, sent: str) -> bool:
    """A Python that has only just begun has no handlers yet."""
    return trial.codes[0] == -getattr(signal, sent) and trial.after_seconds < 1.0


def _compare(trial: Trial, known: Reference, output: Path) -> None:
    if trial.codes[-1] != EXIT_OK:
        trial.faults.append(f"never finished: {trial.codes}")
        return
    losses, adapter = losses_of(output), adapter_of(output)
    if losses.keys() != known.losses.keys():
        trial.faults.append(f"steps {min(losses)}-{max(losses)}, {len(losses)} of {len(known.losses)}")
        return
    apart = max(abs(losses[step] / known.losses[step] - 1) for step in known.losses)
    if apart > TOLERANCE:
        trial.faults.append(f"losses {apart:.1e} apart")
    far = max(float(numpy.abs(adapter[name] - weight).max()) for name, weight in known.adapter.items())
    if adapter.keys() != known.adapter.keys() or far > TOLERANCE:
        trial.faults.append(f"adapter {far:.1e} apart")


def campaign(options: argparse.Namespace) -> int:
    """All trials, a line each; returns 1 where any is at fault."""
    options.output.mkdir(parents=True, exist_ok=True)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it would be ignored in every run, rightly
    known = {dropout: reference(options, dropout) for dropout in DROPOUTS}
    trials = drawn(options, known)
    print("| # | what | dropout | after step | at step | exit codes | |\n|---|---|---|---|---|---|---|", flush=True)
    wrong = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        done = pool.map(lambda drawn: one(options, drawn[0], known[drawn[1].dropout], *drawn[1:]), trials)
        for number, trial in enumerate(done):
            wrong += bool(trial.faults)
            moment = f"{trial.after_step} + {trial.after_seconds:.2f} s"
            cells = (number, trial.what, trial.dropout, moment, trial.at_step, trial.codes, "; ".join(trial.faults))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n{options.count} {options.what}, {wrong} at fault")
    return int(wrong > 0)


def drawn(options: argparse.Namespace, known: dict[float, Reference]) -> list[tuple[int, Trial, random.Random]]:
    """What is done in each trial, and when; each has random numbers of its own, so that several may run at once."""
    rng, trials = random.Random(options.seed), []
    for number in range(options.count):
        dropout = DROPOUTS[number % len(DROPOUTS)]
        kind = rng.choice(KILLS if options.what == "kills" else SIGNALS)
        sent = "SIGKILL" if options.what == "kills" else rng.choice(ASKING).name
        late = rng.random() < LATE_SHARE  # most of a short run is its start
        step = rng.randint(1, options.steps) if late else 0
        moment = rng.uniform(0, 0.6) if late else rng.uniform(options.earliest, 1.0) * known[dropout].seconds
        trials.append((number, Trial(f"{kind} by {sent}", dropout, moment, step), random.Random(rng.random())))
    return trials


def main() -> int:
    if sys.argv[1:2] and sys.argv[1] in OTHERS:
        name = OTHERS[sys.argv.pop(1)]
        return int(importlib.import_module(name).main() or 0)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "signals", *OTHERS])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--workers", type=int, default=0, help="processes that load data")
    parser.add_argument("--earliest", type=float, default=0.02, help="share of a run that is left in peace")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--output", type=Path, default=Path(f"runs/campaign-{os.getpid()}"))
    return campaign(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
