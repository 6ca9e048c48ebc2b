"""Starting the core's small commands with the terminal handed through."""

import sys

import msgspec

from qlora_core.session import child_process
from qlora_profiles.errors import EXIT_INTERRUPTED
from qlora_run.machine.required_packages import INFERENCE, check_installed


def child_environment() -> dict[str, str]:
    """Ours, with Python's UTF-8 for files; the console keeps its own encoding, and no letter can break it."""
    console = getattr(sys.stdout, "encoding", None) or "utf-8"
    return child_process.python_environment(f"{console}:replace")


def job_command(module: str, job: msgspec.Struct) -> list[str]:
    """``python -m module JOB``."""
    return [sys.executable, "-m", module, msgspec.json.encode(job).decode("utf-8")]


def run_job(module: str, job: msgspec.Struct) -> int:
    """Run ``python -m module JOB`` on this terminal; returns its exit code. Ctrl-C is the child's to answer.

    Raises:
        EnvironmentProblem: what it imports is not installed, or it cannot be started.
    """
    check_installed(*INFERENCE)
    sys.stdout.flush()
    command = job_command(module, job)
    child = child_process.start(command, module, output="terminal", environment=child_environment())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            if not child.running:
                return EXIT_INTERRUPTED
