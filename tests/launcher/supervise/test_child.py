"""The core's small commands as the launcher starts them: Ctrl-C is theirs to answer, and what goes wrong is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.children import PATIENCE_SECONDS, python
from support.command_line import python_path

from qlora_profiles.errors import EnvironmentProblem
from qlora_run.commands.demo import exact_shares

ANSWERS_CTRL_C = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("heard", sys.argv[1], flush=True)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(0.5)
print(sys.stdin.readline().strip(), flush=True)
sys.exit(5)
"""

LAUNCHER = """
import signal, sys
from qlora_profiles.jobs import ChatJob
from qlora_run.supervise.child import run_job
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
print("returned", run_job("answers", ChatJob(target="目标")))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_is_the_childs_to_answer(tmp_path: Path) -> None:
    """The launcher waits on, on one terminal with it, and returns what the child made of it."""
    (tmp_path / "answers.py").write_text(ANSWERS_CTRL_C, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": python_path(tmp_path), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        python(LAUNCHER), input="saved\n", env=env, capture_output=True, encoding="utf-8", timeout=PATIENCE_SECONDS
    )
    heard, saved, returned = done.stdout.splitlines()
    assert heard.startswith('heard {"target":"目标"')
    assert saved == "saved"
    assert returned in ("returned 5", "returned 130"), done.stderr  # the latter where it ended right after the key


def test_a_counting_that_fails_says_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentProblem, match=r"could not be counted: --data .*held_out.jsonl .*no such file"
    ) as caught:
        exact_shares(tmp_path, tmp_path / "run")
    assert caught.value.fix == "qlora-run doctor"
