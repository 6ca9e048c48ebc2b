"""Running contenders in child processes, with their device memory watched from outside."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from msgspec.structs import asdict
from switches import also

from qlora_profiles import codec, events, run_folder
from qlora_profiles.plan import RunPlan

HERE = Path(__file__).resolve().parent
SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run did. ``ends`` are the moments (epoch seconds) at which its steps ended.

    ``peak_bytes`` is the device's memory as its driver tells it, less what others held before; main memory on
    a CPU. ``same_recipe`` says that its steps are made of the same examples as ours.
    """

    who: str
    how: str
    started: float
    ends: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    peak_bytes: int | None = None
    same_recipe: bool = True
    oom: bool = False
    error: str | None = None
    adaptations: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def first_step_seconds(self) -> float:
        """From the start of the process to the end of the first step."""
        return self.ends[0] - self.started

    def tokens_per_second(self, warmup: int) -> float:
        """Real tokens a second over the steps behind the first ``warmup``."""
        return sum(self.tokens[warmup:]) / (self.ends[-1] - self.ends[warmup - 1])


class MemoryWatch:
    """The most memory that a process and its children held, sampled until ``stop``."""

    def __init__(self, read: Callable[[], int | None]) -> None:
        self._read = read
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.before_bytes = read() or 0
        self.peak_bytes: int | None = None

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def stop(self) -> int | None:
        """The peak above what was held before."""
        self._over.set()
        self._thread.join()
        return None if self.peak_bytes is None else max(0, self.peak_bytes - self.before_bytes)

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            now = self._read()
            if now is not None:
                self.peak_bytes = max(self.peak_bytes or 0, now)


def device_reader(uuid: str | None) -> Callable[[], int | None]:
    """Reads the card's used memory from its driver."""
    import pynvml

    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(0)
    return lambda: int(pynvml.nvmlDeviceGetMemoryInfo(card).used)


def process_reader(pid: int) -> Callable[[], int | None]:
    """Reads the main memory of a process and its children."""
    import psutil

    def read() -> int | None:
        try:
            root = psutil.Process(pid)
            return sum(p.memory_info().rss for p in [root, *root.children(recursive=True)])
        except psutil.NoSuchProcess:
            return None

    return read


def watched(command: list[str], log: Path, facts: dict[str, Any] | None) -> tuple[int, float, int | None]:
    """Run a command into ``log``; its exit code, its start, and its peak memory (none without ``facts``)."""
    watch = MemoryWatch(device_reader(facts["uuid"])) if facts and facts["device"] == "cuda" else None
    with log.open("w", encoding="utf-8") as out:
        started = time.time()
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=_environment())
        if watch is None and facts:
            watch = MemoryWatch(process_reader(child.pid))
            watch.before_bytes = 0
        if watch:
            watch.start()
        code = child.wait()
    return code, started, watch.stop() if watch else None


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUTF8": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def rows(settings: dict[str, Any], packed_rows: int, folder: Path) -> dict[str, Any]:
    """Tokenise once for all; the facts of the comparison."""
    import speed_rows

    job = {"settings": settings, "packed_rows": packed_rows, "folder": str(folder)}
    _child("speed_rows.py", job, folder / "rows", None)
    return json.loads((folder / speed_rows.FACTS).read_text(encoding="utf-8"))


def _child(script: str, job: dict[str, Any], stem: Path, facts: dict[str, Any] | None) -> tuple[float, int | None]:
    path = stem.with_suffix(".json")
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [sys.executable, str(HERE / script), str(path)]
    code, started, peak = watched(command, stem.with_suffix(".log"), facts)
    if code and facts is None:
        raise SystemExit(f"{script} failed:\n" + last_lines(stem.with_suffix(".log")))
    return started, peak


def last_lines(log: Path, count: int = 5) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-count:])


def result_of(log: Path) -> dict[str, Any] | None:
    """What a child said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.startswith("RESULT ")]
    return json.loads(said[-1][7:]) if said else None


def matmul_rate(facts: dict[str, Any], folder: Path) -> float | None:
    """FLOP/s of a large matrix product on the device."""
    command = [sys.executable, str(HERE / "speed_peer.py"), "--matmul", facts["device"]]
    watched(command, folder / "matmul.log", None)
    found: Any = result_of(folder / "matmul.log")
    return None if found is None else float(found)


def ours(who: str, settings: dict[str, Any], extra: list[str], facts: dict[str, Any], folder: Path) -> Result:
    """The product, as a person runs it."""
    output = folder / who
    command = [sys.executable, "-m", "qlora_run", "--auto", "--json", "--output", str(output), "--overwrite"]
    for name, value in settings.items():
        command += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [str(value)])]
    code, started, peak = watched([*command, *extra], folder / f"{who}.log", facts)
    found = events.all_events(output / run_folder.EVENTS)
    steps = [e for e in found if isinstance(e, events.StepEvent)]
    done = [e for e in found if isinstance(e, events.DoneEvent)]
    if code or not steps:
        said = done[-1].message if done and done[-1].message else last_lines(folder / f"{who}.log", 1)
        return Result(who=who, how=" ".join(extra), started=started, error=f"exit {code}: {said}")
    return Result(
        who=who,
        how=_execution(codec.load(output / run_folder.PLAN, RunPlan)),
        started=started,
        ends=ends_of(steps, facts["device"] == "cuda"),
        losses=tuple(e.loss for e in steps),
        tokens=tuple(e.tokens for e in steps),
        peak_bytes=peak,
        adaptations=sum(isinstance(e, events.AdaptationEvent) for e in found),
        extra={"warnings": [e.message for e in found if isinstance(e, events.WarningEvent)]},
    )


def ends_of(steps: Sequence[events.StepEvent], on_card: bool) -> tuple[float, ...]:
    """When each step of ours ended. On a card its event is written while the next one is computed, up to a step later:
    but for the last the times between ends are the card's own."""
    stamps = [step.time_s for step in steps]
    if not on_card:
        return tuple(stamps)
    later = [sum(step.step_seconds for step in steps[number + 1 :]) for number in range(len(steps))]
    return tuple(stamps[-1] - seconds for seconds in later)


def _execution(plan: RunPlan) -> str:
    execution = plan.execution_values()
    recomputed = f"{execution.layers_recomputed}/{plan.model.num_layers} recomputed"
    return f"{execution.backend}, {execution.token_budget} tokens, {recomputed}{also(asdict(execution))}"


def peer(who: str, how: str, job: dict[str, Any], facts: dict[str, Any], folder: Path) -> Result:
    """A peer's recipe."""
    stem = folder / f"{who}-{how.replace(' ', '-').replace('/', '-').replace('×', 'x')}"
    used = device_reader(facts["uuid"])() if facts["device"] == "cuda" else 0
    place = {"folder": str(stem), "rows": str(folder / "rows.jsonl"), "used_before_bytes": used}
    shared = {name: facts[name] for name in ("recipe", "device", "dtype", "targets")} | {"num_rows": facts["rows"]}
    stem.mkdir(parents=True, exist_ok=True)
    started, peak = _child("speed_peer.py", shared | job | place | {"who": who}, stem, facts)
    found = result_of(stem.with_suffix(".log"))
    if found is None or "error" in found:
        oom = bool(found and found["oom"])
        error = found["error"] if found else last_lines(stem.with_suffix(".log"), 1)
        return Result(who=who, how=how, started=started, peak_bytes=peak, oom=oom, error=error)
    return Result(
        who=who,
        how=how,
        started=started,
        ends=tuple(found["ends"]),
        losses=tuple(found["losses"]),
        tokens=tuple(found["tokens"]),
        peak_bytes=peak,
        same_recipe=not job["packing"],
    )
