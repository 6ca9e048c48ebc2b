"""Starting the core's small commands with the terminal handed through."""

import sys

import msgspec

from qlora_core.session import child_process
from qlora_core.session.stop_signals import Terminated, ended_by_one
from qlora_profiles.errors import EXIT_INTERRUPTED, EnvironmentProblem
from qlora_run.machine.required_packages import INFERENCE, check_installed
from qlora_run.supervise.exit_status import cause_of_death

HIGHEST_CODE = 255
"""That a program says itself; Windows says more of one that died."""


def child_environment() -> dict[str, str]:
    """Ours, with Python's UTF-8 for files; the console keeps its own encoding, and no letter can break it."""
    console = getattr(sys.stdout, "encoding", None) or "utf-8"
    return child_process.python_environment(f"{console}:replace")


def run_job(module: str, job: msgspec.Struct) -> int:
    """Run ``python -m module JOB`` on this terminal; returns its exit code. Ctrl-C is the child's to answer.

    Raises:
        EnvironmentProblem: what it imports is not installed, or it cannot be started.
    """
    check_installed(*INFERENCE)
    sys.stdout.flush()
    command = child_process.job_command(module, job)
    child = child_process.start(command, module, output="terminal", environment=child_environment())
    while True:
        try:
            return _told_code(child.wait(), module)
        except Terminated:
            child.end()  # Ctrl-C reaches it by the terminal, a service manager's signal perhaps only us
            return EXIT_INTERRUPTED
        except KeyboardInterrupt:
            if not child.running:
                return EXIT_INTERRUPTED


def _told_code(code: int, module: str) -> int:
    """A job's exit code. Raises EnvironmentProblem where it died without a word."""
    if ended_by_one(code):
        return EXIT_INTERRUPTED
    if 0 <= code <= HIGHEST_CODE:
        return code
    what = module.rpartition(".")[2]
    raise EnvironmentProblem(f"{what} died ({cause_of_death(code)})", "qlora-run doctor")
