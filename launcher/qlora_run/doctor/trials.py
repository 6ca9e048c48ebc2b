"""Trying things out: the core's self-tests in child processes with time limits, several at once.

Tests that need torch share a child, for importing it takes seconds; what may take the process down with it has one
of its own. A child that dies or hangs costs the test that was at work: the ones behind it get a new child.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import IO, Any

from qlora_profiles.hardware import HardwareReport
from qlora_run.child import child_environment
from qlora_run.learned import BROKEN, Trial
from qlora_run.resolve.situation import version_of

FIRST_SECONDS = 90
"""For the first test of a child: importing torch from a cold disk is part of it."""
NO_TORCH = "torch does not import"


def _needs_nothing(report: HardwareReport) -> str | None:
    return None


def _needs_cuda(report: HardwareReport) -> str | None:
    return None if report.cuda_gpus else "needs an NVIDIA card and a CUDA build of torch"


def _needs_bitsandbytes(report: HardwareReport) -> str | None:
    return None if version_of(report, "bitsandbytes") else "bitsandbytes is not installed"


def _needs_triton(report: HardwareReport) -> str | None:
    installed = version_of(report, "triton") or version_of(report, "triton-windows")
    return _needs_cuda(report) or (None if installed else "Triton is not installed")


def _needs_liger(report: HardwareReport) -> str | None:
    missing = None if version_of(report, "liger-kernel") else "liger-kernel is not installed"
    return _needs_triton(report) or missing


def _needs_unsloth(report: HardwareReport) -> str | None:
    return _needs_cuda(report) or (None if version_of(report, "unsloth") else "unsloth is not installed")


def _needs_cards(report: HardwareReport) -> str | None:
    return None if len(report.cuda_gpus) > 1 else "there is one card at most"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One self-test: the child that it shares with others, its time limit, and what it needs at all."""

    test: str
    child: str
    limit_seconds: float
    missing: Callable[[HardwareReport], str | None] = _needs_nothing


TRIALS = (
    Plan(test="torch", child="torch", limit_seconds=FIRST_SECONDS),
    Plan(test="device", child="torch", limit_seconds=30),
    Plan(test="adamw", child="torch", limit_seconds=60),
    Plan(test="nf4", child="torch", limit_seconds=60, missing=_needs_bitsandbytes),
    Plan(test="int8", child="torch", limit_seconds=30, missing=_needs_bitsandbytes),
    Plan(test="adam8bit", child="torch", limit_seconds=30, missing=_needs_bitsandbytes),
    Plan(test="varlen", child="torch", limit_seconds=30, missing=_needs_cuda),
    Plan(test="workers", child="torch", limit_seconds=60),
    Plan(test="triton", child="triton", limit_seconds=FIRST_SECONDS, missing=_needs_triton),
    Plan(test="liger", child="triton", limit_seconds=60, missing=_needs_liger),
    Plan(test="unsloth", child="unsloth", limit_seconds=FIRST_SECONDS, missing=_needs_unsloth),
    Plan(test="all_reduce", child="ranks", limit_seconds=FIRST_SECONDS, missing=_needs_cards),
)
"""Every trial in its order; the first of a child imports torch."""


def try_all(report: HardwareReport, command: Sequence[str] = ()) -> dict[str, Trial]:
    """Run every trial that has something to try here; never raises, never waits past the limits.

    ``command`` starts a child before the names of its tests (default: the core's self-test in this Python).
    """
    start = command or (sys.executable, "-m", "qlora_core.selftest")
    missing = {plan.test: plan.missing(report) for plan in TRIALS}
    done = {test: Trial(test=test, state="skipped", said=reason or NO_TORCH) for test, reason in missing.items()}
    children = list(dict.fromkeys(plan.child for plan in TRIALS if missing[plan.test] is None))
    if report.torch.version is None:
        return {test: Trial(test=test, state="skipped", said="torch is not installed") for test in done}
    with ThreadPoolExecutor(len(children), thread_name_prefix="trial") as pool:
        groups = [[p for p in TRIALS if p.child == child and missing[p.test] is None] for child in children]
        for trials in pool.map(lambda plans: list(_try_in_turn(plans, start)), groups):
            done |= {trial.test: trial for trial in trials}
    return _blamed({plan.test: done[plan.test] for plan in TRIALS})


def _blamed(trials: dict[str, Trial]) -> dict[str, Trial]:
    """Where torch does not import, that is the one thing to say."""
    if trials["torch"].state not in BROKEN:
        return trials
    return {
        test: t if test == "torch" else Trial(test=test, state="skipped", said=NO_TORCH) for test, t in trials.items()
    }


def _try_in_turn(plans: Sequence[Plan], command: Sequence[str]) -> Iterator[Trial]:
    """Trials of one child; when it ends early the rest goes on in another one."""
    left = list(plans)
    while left:
        trials = list(_Child(command, left).run())
        yield from trials
        left = [] if trials[0].test == "torch" and trials[0].state in BROKEN else left[len(trials) :]


class _Child:
    """A process that runs some tests; each line that it prints is one of its events."""

    def __init__(self, command: Sequence[str], plans: Sequence[Plan]) -> None:
        self._plans = plans
        self._command = [*command, *(plan.test for plan in plans)]

    def run(self) -> Iterator[Trial]:
        """A trial for each test up to the one that the process ended in, at least one."""
        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env=_environment(),
                **_own_group(),
            )
        except OSError as error:
            yield Trial(test=self._plans[0].test, state="crashed", said=f"could not be started: {error}")
            return
        errors = _Reader(process.stderr)
        lines = _Reader(process.stdout)
        try:
            yield from self._results(process, lines, errors)
        finally:
            _end(process)

    def _results(self, process: "subprocess.Popen[str]", lines: "_Reader", errors: "_Reader") -> Iterator[Trial]:
        for number, plan in enumerate(self._plans):
            limit = plan.limit_seconds if number else max(plan.limit_seconds, FIRST_SECONDS)
            result = _result(lines, plan.test, limit)
            if result is not None:
                yield result
                continue
            if lines.ended:
                process.wait()
                last = errors.last_line() or "no message"
                said = f"the process ended ({_exit_words(process.returncode)}): {last}"
                yield Trial(test=plan.test, state="crashed", said=said)
            else:
                yield Trial(test=plan.test, state="hung", said=f"did not end within {limit:.0f} s", seconds=limit)
            return


def _environment() -> dict[str, str]:
    """Ours in UTF-8, and nothing that a library would fetch or report."""
    quiet = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "BITSANDBYTES_NOWELCOME": "1"}
    return {**child_environment(), "PYTHONIOENCODING": "utf-8:replace", **quiet}


def _own_group() -> dict[str, Any]:
    """Children of the child must not outlive it: where there are sessions it gets one of its own."""
    return {} if sys.platform == "win32" else {"start_new_session": True}


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill what still runs, its children too."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
    else:
        import signal

        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _result(lines: "_Reader", test: str, limit_seconds: float) -> Trial | None:
    """The test's own result; ``None`` when the time is up or the process ended."""
    until = time.monotonic() + limit_seconds
    while (line := lines.next_line(until - time.monotonic())) is not None:
        try:
            said = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(said, dict) and said.get("test") == test:
            return Trial(**said)
    return None


def _exit_words(code: int) -> str:
    """An exit code as people look it up: the signal's number, or Windows' status in hexadecimal."""
    if code < 0:
        return f"signal {-code}"
    return f"0x{code:08X}" if code > 0xFFFF else f"exit {code}"


class _Reader:
    """Reads a pipe in a thread of its own, so that waiting for a line can end."""

    def __init__(self, pipe: IO[str] | None) -> None:
        assert pipe is not None
        self.ended = False
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True, name="trial-reader")
        self._thread.start()

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                self._lines.put(line)
        self._lines.put(None)

    def next_line(self, wait_seconds: float) -> str | None:
        """The next line; ``None`` when none comes in time or the pipe ended."""
        try:
            line = self._lines.get(timeout=max(0.0, wait_seconds))
        except Empty:
            return None
        self.ended = self.ended or line is None
        return line

    def last_line(self) -> str:
        """What was said last, once the process has ended."""
        self._thread.join(timeout=5)
        said = []
        while (line := self.next_line(0)) is not None:
            said.append(line.strip())
        return next((line for line in reversed(said) if line), "")
