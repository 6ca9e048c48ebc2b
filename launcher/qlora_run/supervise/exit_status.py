"""How a child process ended, in words: what it said itself, or what its death most likely means."""

import os
import signal
from pathlib import Path

from msgspec import Struct

from qlora_core.session.stop_signals import ended_by_one
from qlora_profiles import run_folder
from qlora_profiles.errors import (
    EXIT_ENVIRONMENT,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EnvironmentProblem,
    Interrupted,
    QloraRunError,
    UserError,
)
from qlora_profiles.events import DoneEvent
from qlora_profiles.machine_errors import UNWRITABLE, disk_full
from qlora_run.report.commands import on_run
from qlora_run.report.formatting import one_line, shown_path
from qlora_run.report.run_state import RunState

LAST_LINES = 8


class ExitStatus(Struct, frozen=True, kw_only=True):
    """How a child ended. ``died`` is true where it could not even say so: trying again may help."""

    exit_code: int
    state: RunState
    problem: QloraRunError | None = None
    died: bool = False


def exit_status_of(code: int, state: RunState, asked: int, output: Path, last_lines: list[str]) -> ExitStatus:
    """What to make of a child's return ``code``: ``asked`` so often to end, ``last_lines`` of what it printed.

    A process that somebody wanted to end did not crash, however it ended: nothing starts it again.
    """
    if not output.is_dir():
        return ExitStatus(exit_code=EXIT_ENVIRONMENT, state=state, problem=_removed(state, output))
    if state.done:
        return ExitStatus(exit_code=state.done.exit_code, state=state, problem=_told(state.done, state, output))
    if asked or ended_by_one(code):
        return ExitStatus(exit_code=EXIT_INTERRUPTED, state=state, problem=_stopped_at_once(state, output))
    if code == UNWRITABLE:
        return ExitStatus(exit_code=EXIT_ENVIRONMENT, state=state, problem=disk_full(output))
    problem = _death(code, state, output, last_lines)
    return ExitStatus(exit_code=EXIT_ENVIRONMENT, state=state, problem=problem, died=True)


def _removed(state: RunState, output: Path) -> EnvironmentProblem:
    lost = f"; what was trained, {state.step} steps, is lost with it" if state.step else ""
    said = f"{shown_path(output)}: the run's folder was removed while it ran{lost}"
    return EnvironmentProblem(said, "start it again")


def _told(done: DoneEvent, state: RunState, output: Path) -> QloraRunError | None:
    """What the child itself said had gone wrong."""
    if done.status != "failed":
        return None
    kind = UserError if done.exit_code == UserError.exit_code else EnvironmentProblem
    message = done.message or f"the training failed (exit {done.exit_code})"
    return kind(message, done.fix or _way_on(state, output))


def _stopped_at_once(state: RunState, output: Path) -> Interrupted:
    if state.checkpoint is None:
        return Interrupted(f"Stopped at once at step {state.step}; nothing was saved yet.")
    return Interrupted(f"Stopped at once; saved is step {state.checkpoint.step}.", on_run("resume", output))


def _death(code: int, state: RunState, output: Path, last_lines: list[str]) -> EnvironmentProblem:
    where = f"at step {state.step}" if state.step else "before the first step"
    message = f"the training process died {where} ({cause_of_death(code)})"
    if last_lines:
        told = "\n".join(f"    {line}" for line in last_lines)
        message += f"\n  last words in {shown_path(output / run_folder.LOG)}:\n{told}"
    return EnvironmentProblem(message, _way_on(state, output) or "qlora-run doctor")


def cause_of_death(code: int) -> str:
    """What the return code of a process that said nothing means."""
    if code == EXIT_OK:
        return "it ended without a word"
    if code > 0:
        return f"exit {code}" if code < 2**16 else f"Windows error {code:#010x}"
    name = next((s.name for s in signal.Signals if s.value == -code), f"signal {-code}")
    hint = {"SIGKILL": ": the system often does that when main memory runs out", "SIGSEGV": ": a crash in native code"}
    return name + hint.get(name, "")


def _way_on(state: RunState, output: Path) -> str | None:
    return on_run("resume", output) if state.checkpoint else None


def last_lines_of(path: Path, start: int) -> list[str]:
    """The end of what the child wrote to its log, from byte ``start`` on; nothing where that is gone."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(start, size - 8192))
        text = file.read().decode("utf-8", errors="replace")
    return [one_line(line)[:200] for line in text.splitlines() if line.strip()][-LAST_LINES:]
