"""The processes that trials run in: a crash or a hang of one is a result, and Ctrl-C leaves none behind."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from qlora_core.session import child_process
from qlora_core.session.child_process import ChildProcess, LineReader
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.hardware import HardwareReport
from qlora_run.machine.selftest_results import BROKEN, Trial

FIRST_SECONDS = 90
"""For the first test of a child: importing torch from a cold disk is part of it."""
NO_TORCH = "torch does not import"
STOPPED = "stopped"
GLANCE_SECONDS = 0.2
"""Between looks: on Windows Ctrl-C does not reach a thread that waits without end."""


def _needs_nothing(report: HardwareReport) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """One self-test: the child that it shares with others, its time limit, and what it needs at all."""

    test: str
    child: str
    limit_seconds: float
    missing: Callable[[HardwareReport], str | None] = _needs_nothing


@dataclass(slots=True)
class _Running:
    """The processes at work, so that all of them can be ended at once."""

    processes: list[ChildProcess] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def start(self, command: Sequence[str]) -> ChildProcess | None:
        """A new process, or ``None`` once everything was stopped. Raises EnvironmentProblem."""
        with self.lock:
            if self.stopped:
                return None
            self.processes.append(_started(command))
            return self.processes[-1]

    def stop(self) -> None:
        """End all of them; none starts any more."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.end()


def run_groups(groups: Sequence[Sequence[TrialPlan]], command: Sequence[str]) -> list[Trial]:
    """Run groups of tests, each in children of its own, all at once; the trials in the order of ``groups``.

    Whatever interrupts this, ``KeyboardInterrupt`` too, ends the children and is raised again.

    Waiting shares no lock with the threads: an interruption can leave a pool's futures locked for ever.
    """
    running, results = _Running(), SimpleQueue[tuple[int, list[Trial] | BaseException]]()
    done: dict[int, list[Trial] | BaseException] = {}
    try:
        for number, plans in enumerate(groups):
            work = (results, number, plans, command, running)
            threading.Thread(target=_all_in_turn, args=work, daemon=True, name="trial").start()
        while len(done) < len(groups):
            with suppress(Empty):
                number, result = results.get(timeout=GLANCE_SECONDS)
                done[number] = result
    except BaseException:
        running.stop()
        raise
    return [trial for number in range(len(groups)) for trial in _or_raised(done[number])]


def _all_in_turn(
    results: "SimpleQueue[tuple[int, list[Trial] | BaseException]]",
    number: int,
    plans: Sequence[TrialPlan],
    command: Sequence[str],
    running: _Running,
) -> None:
    try:
        results.put((number, list(_try_in_turn(plans, command, running))))
    except BaseException as error:
        results.put((number, error))


def _or_raised(result: list[Trial] | BaseException) -> list[Trial]:
    if isinstance(result, BaseException):
        raise result
    return result


def _try_in_turn(plans: Sequence[TrialPlan], command: Sequence[str], running: _Running) -> Iterator[Trial]:
    """Trials of one child; when it ends early the rest goes on in another one."""
    left = list(plans)
    while left:
        trials = list(_Child(command, left).run(running))
        yield from trials
        left = (
            []
            if trials[0].said == STOPPED or (trials[0].test == "torch" and trials[0].state in BROKEN)
            else left[len(trials) :]
        )


class _Child:
    """A process that runs some tests; each line that it prints is one of its events."""

    def __init__(self, command: Sequence[str], plans: Sequence[TrialPlan]) -> None:
        self._plans = plans
        self._command = [*command, *(plan.test for plan in plans)]

    def run(self, running: _Running) -> Iterator[Trial]:
        """A trial for each test up to the one that the process ended in, at least one."""
        first = self._plans[0].test
        try:
            process = running.start(self._command)
        except EnvironmentProblem as problem:
            yield Trial(test=first, state="crashed", said=f"could not be started: {problem.__cause__}")
            return
        if process is None:
            yield Trial(test=first, state="skipped", said=STOPPED)
            return
        try:
            yield from self._results(process)
        finally:
            process.end()

    def _results(self, process: ChildProcess) -> Iterator[Trial]:
        lines, errors = process.pipes()
        for number, plan in enumerate(self._plans):
            limit = plan.limit_seconds if number else max(plan.limit_seconds, FIRST_SECONDS)
            result = _result(lines, plan.test, limit)
            if result is not None:
                yield result
                continue
            if lines.ended:
                process.wait()
                last = (errors.rest() or ["no message"])[-1]
                said = f"the process ended ({_exit_text(process.exit_code)}): {last}"
                yield Trial(test=plan.test, state="crashed", said=said)
            else:
                yield Trial(test=plan.test, state="hung", said=f"did not end within {limit:.0f} s", seconds=limit)
            return


def _started(command: Sequence[str]) -> ChildProcess:
    return child_process.start(command, "a trial", output="pipes", environment=_environment(), own_group=True)


def _environment() -> dict[str, str]:
    """Ours in UTF-8, and nothing that a library would fetch or report."""
    quiet = {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1", "BITSANDBYTES_NOWELCOME": "1"}
    return child_process.python_environment("utf-8:replace", strong=quiet)


def _result(lines: LineReader, test: str, limit_seconds: float) -> Trial | None:
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


def _exit_text(code: int) -> str:
    """An exit code as people look it up: the signal's number, or Windows' status in hexadecimal."""
    if code < 0:
        return f"signal {-code}"
    return f"0x{code:08X}" if code > 0xFFFF else f"exit {code}"
