"""A process that stands in for the core: says what it is told to say, ends how it is told to end.

``python standin_core.py MODE OUTPUT [PACE_SECONDS]``
"""

import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from qlora_core.session.stop_signals import let_through
from qlora_profiles import events, run_folder

STEPS_TOTAL = 40


class StandIn:
    """Its event file, and whether it was asked to stop."""

    def __init__(self, output: Path, pace_seconds: float) -> None:
        self.output, self.pace_seconds = output, pace_seconds
        self.path = output / run_folder.EVENTS
        self.asked = threading.Event()
        self.told: queue.Queue[str] = queue.Queue()
        self.start_s = time.time()
        let_through()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        line = os.read(sys.stdin.fileno(), 4096).decode("utf-8").strip()
        if line.startswith("go "):
            self.told.put(line.removeprefix("go "))
            line = os.read(sys.stdin.fileno(), 4096).decode("utf-8")
        self.asked.set()

    def write(self, kind: Any, **fields: Any) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(events.encode(kind(time_s=time.time(), **fields)))

    def begin(self, first_step: int = 1) -> None:
        self.write(events.PhaseEvent, name="loading the model", done=1, total=2)
        self.write(
            events.RunEvent,
            steps_total=STEPS_TOTAL,
            first_step=first_step,
            trainable_params=1000,
            recipe_digest="0" * 16,
            backend="peft",
            device="cpu",
        )
        if first_step == 1:
            self.write(events.EvalEvent, step=0, loss=2.2, rows=3, row_losses=(2.0, 2.2, 2.4))

    def steps(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            time.sleep(self.pace_seconds)
            self.write(
                events.StepEvent,
                step=step,
                loss=2.2 - step / 40,
                learning_rate=2e-4,
                grad_norm=1.0,
                supervised_tokens=100,
                tokens=400,
                examples=16,
                micro_batches=1,
                step_seconds=0.01,
                epoch=step / STEPS_TOTAL,
            )

    def checkpoint(self, step: int) -> None:
        self.write(events.CheckpointEvent, step=step, path=str(self.output / f"checkpoint-{step}"))

    def done(self, status: str, code: int, step: int, **fields: Any) -> int:
        seconds = time.time() - self.start_s
        self.write(events.DoneEvent, status=status, exit_code=code, step=step, seconds=seconds, **fields)
        return code

    def finish(self) -> int:
        """A run that ends well; the end is written just before the process is gone."""
        self.begin()
        self.steps(1, STEPS_TOTAL)
        self.write(events.EvalEvent, step=STEPS_TOTAL, loss=1.2, rows=3, row_losses=(1.0, 1.2, 2.4))
        self.checkpoint(STEPS_TOTAL)
        return self.done("finished", 0, STEPS_TOTAL)

    def go_on(self) -> int:
        """A resumed process: from step 3 on."""
        self.begin(first_step=3)
        self.steps(3, 4)
        return self.done("finished", 0, 4)

    def measure(self) -> int:
        """Measures as told in a file, and repeats the launcher's answer."""
        measured = json.loads((self.output / "measured.json").read_text(encoding="utf-8"))
        self.write(events.MeasuredEvent, **measured)
        self.write(events.WarningEvent, message=self.told.get(timeout=60))
        return self.done("finished", 0, 0)

    def fragile(self) -> int:
        """Dies two steps on, as often as it is told in a file; goes on from its checkpoint."""
        path = self.output / "deaths"
        deaths, first = map(int, path.read_text(encoding="utf-8").split())
        self.begin(first_step=first)
        self.steps(first, first + 1)
        self.checkpoint(first + 1)
        path.write_text(f"{deaths - 1} {first + 2}", encoding="utf-8")
        if deaths > 0:
            os._exit(77)
        return self.done("finished", 0, first + 1)

    def shrinking(self) -> int:
        """A fragile one that became smaller before it dies, as it is told in a file."""
        for told in json.loads((self.output / "shrinking.json").read_text(encoding="utf-8")):
            self.write(events.AdaptationEvent, step=1, cause="out of memory", before={}, after=told)
        return self.fragile()

    def until_stopped(self) -> int:
        """Steps until the launcher says stop, or is gone."""
        self.begin()
        step = 0
        while not self.asked.is_set():
            step += 1
            self.steps(step, step)
        self.checkpoint(step)
        return self.done("interrupted", 130, step)

    def deaf(self) -> int:
        """Never stops by itself, and neither does its own child."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (self.output / "grandchild").write_text(str(child.pid), encoding="utf-8")
        self.begin()
        self.steps(1, 2)
        self.checkpoint(2)
        time.sleep(600)
        return 0

    def die(self) -> int:
        """Gone in the middle of a line, as a crash in native code would be."""
        print("loading…", flush=True)
        print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
        self.begin()
        self.steps(1, 2)
        self.checkpoint(2)
        with self.path.open("a", encoding="utf-8") as file:
            file.write('{"type":"step","step":')
        os._exit(77)

    def fail(self) -> int:
        """Says itself what is wrong."""
        message = "step 3: the loss is nan"
        return self.done("failed", 2, 0, message=message, fix="--learning-rate 5e-5")

    def internal(self) -> int:
        """An internal error it can still report."""
        self.begin()
        self.steps(1, 1)
        self.checkpoint(1)
        return self.done("failed", 3, 0, message="KeyError: 'x'\n  the whole story: run.log")

    def traceback(self) -> int:
        """An error nobody caught."""
        raise RuntimeError("nobody caught this")

    def environment(self) -> int:
        """Writes down what it was given."""
        text = "\n".join(f"{name}={value}" for name, value in os.environ.items())
        (self.output / "environment").write_text(text, encoding="utf-8")
        return self.done("finished", 0, 0)


if __name__ == "__main__":
    stand_in = StandIn(Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
    sys.exit(getattr(stand_in, sys.argv[1])())
