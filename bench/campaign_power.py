"""Is anything lost when the power fails? A file system's image is copied while the product trains on it.

usage: python bench/campaign_power.py [--losses 20] [--model DIR] [--data FILE] [--steps 60] [--save-steps 5]

Linux, as root: an ext4 image is mounted over a loop device, without ext4's own help for programs that do not sync
(``noauto_da_alloc``), and the product trains in it. At a random moment its processes are held, the image's file is
copied as it stands on the device, and they are killed: the copy holds what reached the device and no more, as after
the power failed. The copy is mounted (ext4 replays its journal), and the same command must go on in it, from the last
checkpoint that was told of, to the same losses and the same adapter as an undisturbed run.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil

from qlora_profiles import events, run_folder
from qlora_profiles.digests import digest_of
from qlora_profiles.units import MIB
from qlora_run.runs.folder import look

IMAGE_BYTES = 512 * MIB
OPTIONS = "loop,noauto_da_alloc,commit=60"
ADAPTER = Path(run_folder.ADAPTER) / run_folder.ADAPTER_WEIGHTS


def can_mount() -> str | None:
    """Why no image can be mounted here, or ``None``."""
    if not sys.platform.startswith("linux") or shutil.which("mkfs.ext4") is None:
        return "needs Linux and mkfs.ext4"
    with tempfile.TemporaryDirectory() as folder:
        image = new_image(Path(folder) / "image", 16 * MIB)
        try:
            with mounted(image, Path(folder) / "at"):
                return None
        except (OSError, subprocess.CalledProcessError):
            return "no loop device can be mounted: needs root"


def new_image(path: Path, size_bytes: int = IMAGE_BYTES) -> Path:
    """An empty ext4 file system in a file."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.ext4", "-q", str(path)], check=True)
    return path


@contextmanager
def mounted(image: Path, at: Path) -> Iterator[Path]:
    """The file system of an image at a folder."""
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", OPTIONS, str(image), str(at)], check=True, capture_output=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=False, capture_output=True)


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One power loss. ``step`` is the last step told of before it, ``saved`` the last checkpoint, ``resumed`` the
    one gone on from (0: from the start); ``same`` says that losses and adapter are those of an undisturbed run."""

    step: int
    saved: int
    resumed: int
    plan_read: bool
    exit_code: int
    same: bool

    @property
    def held(self) -> bool:
        """Nothing was lost but the steps since the last checkpoint."""
        return self.plan_read and self.exit_code == 0 and self.resumed >= self.saved and self.same


class Campaign:
    """Power losses of one recipe; ``work`` is a folder on an ordinary file system."""

    def __init__(self, work: Path, model: Path, data: Path, steps: int, save_steps: int, dropout: float) -> None:
        self.work, self.at, self.steps = work, work / "disk", steps
        words = {"model": model, "data": data, "max-steps": steps, "save-steps": save_steps, "eval-steps": steps}
        words |= {"method": "lora", "lora-r": 8, "examples-per-step": 4, "lora-dropout": dropout, "keep": "last"}
        options = [word for name, value in words.items() for word in (f"--{name}", str(value))]
        self.command = [sys.executable, "-m", "qlora_run", "--auto", *options, "--output"]

    def run(self, output: Path) -> int:
        """The command to its end."""
        return subprocess.run([*self.command, str(output)], capture_output=True).returncode

    def undisturbed(self) -> Path:
        """The run that nothing happens to."""
        output = self.work / "undisturbed"
        if not output.exists() and self.run(output):
            raise SystemExit("the undisturbed run failed")
        return output

    def lose_power(self, rng: random.Random) -> Loss:
        """Train in a new image, copy it at a random moment, and go on in the copy."""
        image, copy = new_image(self.work / "image"), self.work / "copy"
        with mounted(image, self.at):
            step, more = rng.randint(1, self.steps - 1), rng.random()
            told = self._until(self.at / "run", step, more, lambda: copied(image, copy))
        with mounted(copy, self.at):
            return self._gone_on(self.at / "run", *told)

    def _until(self, output: Path, step: int, more_seconds: float, then: Any) -> tuple[int, int]:
        """Train until a step and a little more, hold everything, do ``then`` and kill; (last step, last checkpoint)."""
        launcher = subprocess.Popen([*self.command, str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while launcher.poll() is None and last(output, events.StepEvent) < step:
            time.sleep(0.01)
        time.sleep(more_seconds * 0.2)
        ours = psutil.Process(launcher.pid)
        processes = [ours, *ours.children(recursive=True)] if launcher.poll() is None else []
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        told = last(output, events.StepEvent), last(output, events.CheckpointEvent)
        then()
        for process in processes:
            process.kill()
        launcher.wait()
        psutil.wait_procs(processes, timeout=20)
        return told

    def _gone_on(self, output: Path, step: int, saved: int) -> Loss:
        plan_read, before = look(output).plan is not None, len(of(output, events.RunEvent))
        code = self.run(output)
        ended = code == 2 and look(output).state == "finished"  # before the power failed
        starts = of(output, events.RunEvent)[before:]
        same = losses(output) == losses(self.undisturbed()) and digest_of(output / ADAPTER) == digest_of(
            self.undisturbed() / ADAPTER
        )
        resumed = self.steps if ended else starts[0].first_step - 1 if starts else 0
        return Loss(
            step=step, saved=saved, resumed=resumed, plan_read=plan_read, exit_code=0 if ended else code, same=same
        )


def copied(image: Path, copy: Path) -> None:
    """What the device holds now: the file behind it, as the system reads it."""
    shutil.copyfile(image, copy)


def of(folder: Path, kind: type) -> list[Any]:
    """The events of a kind."""
    return [event for event in events.all_events(folder / run_folder.EVENTS) if isinstance(event, kind)]


def last(folder: Path, kind: type) -> int:
    """The highest step of a kind of event; 0 where there is none."""
    return max((event.step for event in of(folder, kind)), default=0)


def losses(folder: Path) -> dict[int, float]:
    """The last word on each step."""
    return {event.step: event.loss for event in of(folder, events.StepEvent)}


def main() -> None:
    demo = Path(str(files("qlora_core").joinpath("demo")))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", type=int, default=20)
    parser.add_argument("--model", type=Path, default=demo / "base")
    parser.add_argument("--data", type=Path, default=demo / "data" / "train.jsonl")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--save-steps", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if why := can_mount():
        raise SystemExit(why)
    rng, held = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="campaign_power") as folder:
        campaign = Campaign(
            Path(folder), options.model, options.data, options.steps, options.save_steps, options.dropout
        )
        for number in range(options.losses):
            found = campaign.lose_power(rng)
            held += found.held
            print(f"{number}: {'held' if found.held else 'LOST'} {found}", flush=True)
    print(f"{held} of {options.losses} held")
    sys.exit(held != options.losses)


if __name__ == "__main__":
    main()
