"""Child processes: the one way in which each of ours is started, told, read, waited for and ended.

A caller says what is its own: the command, where the words of the child go, whether it is told anything, whether the
terminal's Ctrl-C reaches it. Launcher and core both start children, so nothing here imports torch.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from io import TextIOWrapper
from queue import Empty, SimpleQueue
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Literal

import msgspec

from qlora_core.session.stop_signals import held_back
from qlora_profiles.errors import EnvironmentProblem

if TYPE_CHECKING:
    import psutil

GLANCE_SECONDS = 0.1
"""Between looks: on Windows Ctrl-C does not reach a thread that waits without end."""
LAST_WORDS_SECONDS = 5.0
"""How long a pipe is read on behind its process: what that started may hold it open."""

Output = BinaryIO | Literal["terminal", "pipes"]


def job_command(module: str, job: msgspec.Struct) -> list[str]:
    """``python -m module JOB``."""
    return [sys.executable, "-m", module, msgspec.json.encode(job).decode("utf-8")]


def python_environment(
    encoding: str = "utf-8", weak: Mapping[str, str] | None = None, strong: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of a Python of ours: this process's, with UTF-8 for files and ``encoding`` for its streams.

    ``weak`` gives way to what a person set, ``strong`` wins over all.
    """
    return {
        **(weak or {}),
        **os.environ,
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": encoding,
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a random.py in the current folder must not become the standard library's
        **(strong or {}),
    }


class LineReader:
    """Reads a pipe in a thread of its own, so that waiting for a line can end; broken bytes become question marks."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.ended = False
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True, name="child-reader")
        self._thread.start()

    def _read(self, pipe: IO[bytes]) -> None:
        with suppress(OSError, ValueError), TextIOWrapper(pipe, encoding="utf-8", errors="replace") as text:
            for line in text:
                self._lines.put(line)
        self._lines.put(None)

    def next_line(self, wait_seconds: float) -> str | None:
        """The next line with its end; ``None`` when none comes in time or the pipe ended."""
        try:
            line = self._lines.get(timeout=max(0.0, wait_seconds))
        except Empty:
            return None
        self.ended = self.ended or line is None
        return line

    def rest(self) -> list[str]:
        """The lines not handed out so far, stripped and without empty ones, once the process has ended."""
        self._thread.join(LAST_WORDS_SECONDS)
        found = []
        while (line := self.next_line(0)) is not None:
            found.append(line.strip())
        return [line for line in found if line]


class ChildProcess:
    """A process that ``start`` began."""

    def __init__(self, process: "subprocess.Popen[bytes]", own_group: bool) -> None:
        self._process, self._own_group = process, own_group
        self.pid = process.pid
        self._pipes = tuple(LineReader(pipe) for pipe in (process.stdout, process.stderr) if pipe)

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int:
        """What it returned once it has ended; minus the signal's number where one ended it."""
        code = self._process.poll()
        assert code is not None, "it still runs"
        return code

    def pipes(self) -> tuple[LineReader, LineReader]:
        """Readers of its standard output and standard error. Raises ValueError: it was started without pipes."""
        out, err = self._pipes
        return out, err

    def tell(self, line: str) -> None:
        """Say a line on its standard input; nothing happens where it listens no more."""
        with suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def hang_up(self) -> None:
        """Close its standard input, which tells it that nobody will say anything more."""
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def wait(self) -> int:
        """Wait for its end; returns its exit code. Raises KeyboardInterrupt, and leaves it running then."""
        return self._process.wait()

    def ended_within(self, seconds: float) -> bool:
        """Wait so long at most; returns whether it has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ended_by_itself(self, stop: Callable[[], object], most_seconds: float) -> bool:
        """Wait until it ends, or end it: when ``stop`` says so, when time is up, when the waiting is interrupted."""
        until = time.monotonic() + most_seconds
        try:
            while self.running and time.monotonic() < until and not stop():
                self.ended_within(GLANCE_SECONDS)
            return not self.running
        finally:
            self.end()

    def said(self) -> tuple[list[str], list[str]]:
        """Lines of both its pipes, without empty ones, once it has ended. An interruption ends it."""
        out, err = self.pipes()
        try:
            while not self.ended_within(GLANCE_SECONDS):
                pass
        except BaseException:
            self.end()
            raise
        return out.rest(), err.rest()

    def kill(self) -> None:
        """Kill it and all that it started, without waiting; nothing happens once it has ended."""
        if not self.running:
            return
        descendants = _descendants(self.pid)
        if sys.platform != "win32" and self._own_group:  # those, too, whose parents have ended
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        with suppress(OSError):
            self._process.kill()
        for descendant in descendants:
            _kill(descendant)

    def end(self) -> None:
        """Kill it and all that it started, and wait until it is gone."""
        self.kill()
        self._process.wait()


def start(
    command: Sequence[str],
    what: str,
    *,
    output: Output,
    environment: Mapping[str, str] | None = None,
    told: bool = False,
    own_group: bool = False,
    holds_signals_back: bool = False,
) -> ChildProcess:
    """Start a process.

    Args:
        command: the program and its words; no shell reads them.
        what: what a person calls it, as in "the training process".
        output: where its words go, errors too: an open file, pipes to us, or our own streams. On the ``"terminal"`` it
            shares our standard input as well.
        environment: instead of ours.
        told: whether it listens to ``tell``.
        own_group: keeps the terminal's Ctrl-C from it, and lets ``kill`` find what it started and left behind.
        holds_signals_back: signals that ask it to end wait until it calls ``stop_signals.let_through``.

    Raises:
        EnvironmentProblem: the system does not start it; its cause is the OSError.
    """
    stdin = subprocess.PIPE if told else None if output == "terminal" else subprocess.DEVNULL
    said: Any = {"terminal": None, "pipes": subprocess.PIPE}[output] if isinstance(output, str) else output
    try:
        with held_back() if holds_signals_back else nullcontext():
            process = subprocess.Popen(
                command, stdin=stdin, stdout=said, stderr=said, env=environment, **(_group() if own_group else {})
            )
    except OSError as error:
        raise EnvironmentProblem(f"{what} cannot be started: {error}", "qlora-run doctor") from error
    return ChildProcess(process, own_group)


def _group() -> dict[str, Any]:
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _descendants(pid: int) -> "list[psutil.Process]":
    import psutil

    with suppress(psutil.Error):
        return list(psutil.Process(pid).children(recursive=True))
    return []


def _kill(process: "psutil.Process") -> None:
    import psutil

    with suppress(psutil.Error):
        process.kill()
