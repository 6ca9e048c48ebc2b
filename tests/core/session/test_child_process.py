"""Real children: what they started ends with them, what they say is read, what they ignore does not keep them."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.children import PATIENCE_SECONDS, STARTS_ANOTHER, is_gone, pid_in, python

from qlora_core.session.child_process import ChildProcess, python_environment, start
from qlora_profiles.errors import EXIT_ENVIRONMENT, EnvironmentProblem

SLEEPS = "import time; time.sleep(600)"
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and sessions of POSIX")


@contextmanager
def child(code: str, *words: str, told: bool = False, own_group: bool = False) -> Iterator[ChildProcess]:
    """A child with pipes that never outlives its test."""
    command, environment = python(code, *words), python_environment()
    started = start(command, "it", output="pipes", environment=environment, told=told, own_group=own_group)
    try:
        yield started
    finally:
        started.end()


@pytest.mark.parametrize("own_group", [False, True])
def test_what_a_child_started_ends_with_it(tmp_path: Path, own_group: bool) -> None:
    with child(STARTS_ANOTHER, str(tmp_path / "pid"), own_group=own_group) as started:
        grandchild = pid_in(tmp_path / "pid")
        started.end()
        assert not started.running
    assert is_gone(grandchild)


@POSIX
def test_what_lost_its_parent_ends_with_the_group(tmp_path: Path) -> None:
    """Its parent is gone, so that only the group tells that it is ours."""
    starts = f"subprocess.run([sys.executable, '-c', {STARTS_ANOTHER!r}, *sys.argv[1:]])"
    code = f"import subprocess, sys\n{starts}\n{SLEEPS}"
    with child(code, str(tmp_path / "pid"), "leave", own_group=True):
        orphan = pid_in(tmp_path / "pid")
    assert is_gone(orphan)


def test_ending_what_has_ended_changes_nothing() -> None:
    with child("raise SystemExit(7)") as started:
        assert started.ended_within(PATIENCE_SECONDS)
        started.kill()
        started.end()
        assert started.exit_code == 7


@POSIX
def test_a_signal_is_told_as_its_number() -> None:
    with child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") as started:
        assert started.wait() == -signal.SIGKILL
        assert started.exit_code == -signal.SIGKILL


def test_letters_and_broken_bytes_are_read() -> None:
    said = "退款要几天\n\n".encode() + b"\xff\xe9\x80 last"
    code = f"import sys; sys.stdout.buffer.write({said!r}); print('错', file=sys.stderr)"
    with child(code) as started:
        out, err = started.said()
        assert out[0] == "退款要几天"
        assert out[1].startswith("\ufffd")
        assert out[1].endswith(" last")
        assert (len(out), err) == (2, ["错"])


def test_more_than_a_pipe_holds_is_read() -> None:
    with child("import sys; [print('x' * 99) or print('y' * 99, file=sys.stderr) for _ in range(4000)]") as started:
        out, err = started.said()
        assert (len(out), len(err), started.exit_code) == (4000, 4000, 0)


def test_lines_come_one_by_one_and_the_end_shows() -> None:
    with child("print('one'); print('two'); print(); print('three')") as started:
        lines, _ = started.pipes()
        assert lines.next_line(PATIENCE_SECONDS) == "one\n"
        assert started.ended_within(PATIENCE_SECONDS)
        assert (lines.ended, lines.rest(), lines.ended) == (False, ["two", "three"], True)
    with child(SLEEPS) as started:
        lines, _ = started.pipes()
        assert (lines.next_line(0.01), lines.ended) == (None, False)


def test_a_child_is_told_until_it_listens_no_more() -> None:
    with child("import sys; [print(line.strip()[::-1]) for line in sys.stdin]", told=True) as started:
        started.tell("stop")
        started.tell("停一下")
        started.hang_up()
        assert started.said() == (["pots", "下一停"], [])
        started.tell("nobody listens")


def test_a_child_that_ignores_the_stop_is_ended() -> None:
    deaf = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGTERM, signal.SIGINT)]"
    stop = threading.Event()
    with child(f"{deaf}; print('ready'); time.sleep(600)") as started:
        assert started.pipes()[0].next_line(PATIENCE_SECONDS) == "ready\n"
        stop.set()
        assert not started.ended_by_itself(stop.is_set, PATIENCE_SECONDS)
        assert not started.running


def test_a_child_that_takes_too_long_is_ended() -> None:
    with child(SLEEPS) as started:
        assert not started.ended_by_itself(lambda: False, most_seconds=0.0)
        assert not started.running
    with child("") as started:
        assert started.ended_by_itself(lambda: False, PATIENCE_SECONDS)
        assert started.exit_code == 0


def test_whatever_interrupts_the_waiting_ends_the_child() -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    with child(SLEEPS) as started:
        with pytest.raises(KeyboardInterrupt):
            started.ended_by_itself(interrupt, PATIENCE_SECONDS)
        assert not started.running


INTERRUPTED = """
import signal, sys, threading, time
from qlora_core.session.child_process import start
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
child = start([sys.executable, "-c", "import time; time.sleep(600)"], "it", output="pipes")
print(child.pid, flush=True)
threading.Timer(0.2, lambda: signal.raise_signal(signal.SIGINT)).start()
try:
    child.said()
except KeyboardInterrupt:
    print("stopped", child.running)
"""


@POSIX
def test_ctrl_c_while_a_child_is_heard_out_ends_it() -> None:
    done = subprocess.run(python(INTERRUPTED), capture_output=True, encoding="utf-8", timeout=PATIENCE_SECONDS)
    pid, *rest = done.stdout.split()
    assert rest == ["stopped", "False"], done.stderr
    assert is_gone(int(pid))


@POSIX
@pytest.mark.parametrize("own_group", [False, True])
def test_the_terminals_ctrl_c_reaches_only_its_own_group(own_group: bool) -> None:
    with child(SLEEPS, own_group=own_group) as started:
        assert (os.getpgid(started.pid) == os.getpgrp()) is not own_group


def test_a_log_takes_both_streams(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        command = python("import sys; print('一', flush=True); print('二', file=sys.stderr)")
        assert start(command, "it", output=log, environment=python_environment()).wait() == 0
    assert (tmp_path / "log").read_text(encoding="utf-8").split() == ["一", "二"]


def test_what_the_system_does_not_start_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="the thing cannot be started") as caught:
        start([str(tmp_path / "no-such-program")], "the thing", output="pipes")
    assert isinstance(caught.value.__cause__, OSError)
    assert (caught.value.exit_code, caught.value.fix) == (EXIT_ENVIRONMENT, "qlora-run doctor")


def test_a_persons_environment_gives_way_to_ours_and_the_weak_to_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUTF8", "0")
    monkeypatch.setenv("MINE", "mine")
    found = python_environment("gbk:replace", weak={"MINE": "weak", "ELSE": "weak"}, strong={"PYTHONSAFEPATH": ""})
    assert (found["PYTHONUTF8"], found["PYTHONIOENCODING"], found["PYTHONSAFEPATH"]) == ("1", "gbk:replace", "")
    assert (found["MINE"], found["ELSE"]) == ("mine", "weak")


def test_nothing_else_of_ours_starts_processes() -> None:
    """But for the doctor's fixes, which are commands of a person's own."""
    root = Path(__file__).parents[3]
    users = {
        file.name
        for package in ("launcher", "core", "profiles")
        for file in (root / package).rglob("*.py")
        if "import subprocess" in file.read_text(encoding="utf-8")
    }
    assert users == {"child_process.py", "script.py"}
