"""Being asked to end: from the first moment on, by anybody, once or twice."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.children import PATIENCE_SECONDS, python

from qlora_core.session import child_process
from qlora_core.session.event_log import EventLog
from qlora_core.session.stop_signals import APART_SECONDS, StopRequests, ended_by_one
from qlora_profiles.errors import EnvironmentProblem

CORE = """
import sys, time
print("begun", flush=True)
time.sleep(0.5)  # no handlers yet
from qlora_core.session.control import Control
control = Control()
control.listen(supervised=True)
print("asked" if control else "not asked", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGUSR1"])
def test_a_signal_before_the_handlers_is_not_lost(name: str) -> None:
    child = child_process.start(python(CORE), "x", output="pipes", told=True, own_group=True, holds_signals_back=True)
    assert child.pipes()[0].next_line(PATIENCE_SECONDS) == "begun\n"
    os.kill(child.pid, getattr(signal, name))
    assert child.said() == (["asked"], [])
    child.hang_up()
    assert child.exit_code == 0


def test_only_ctrl_c_asks_again() -> None:
    requests = StopRequests()
    polite = getattr(signal, "SIGHUP", signal.SIGTERM)
    for number in (signal.SIGTERM, polite, signal.SIGTERM):
        requests.on_signal(number)
    assert requests.count == 1
    time.sleep(APART_SECONDS)
    requests.on_signal(signal.SIGINT)
    requests.on_signal(signal.SIGINT)  # passed on by a wrapper, too
    assert requests.count == 2


def test_who_was_ended_by_one() -> None:
    assert [ended_by_one(code) for code in (-signal.SIGTERM, 0xC000013A, 0, 1, 3)] == [True, True, False, False, False]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no open files")
def test_a_folder_that_is_removed_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    log = EventLog(folder)
    log.warn("x")
    subprocess.run(["rm", "-r", str(folder)], check=True)
    with pytest.raises(EnvironmentProblem, match="the run's folder was removed while it ran"):
        log.warn("y")
    assert not folder.exists()
    log.close()
