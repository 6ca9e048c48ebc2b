"""Starting the core's small commands with the terminal handed through."""

import os
import subprocess
import sys

import msgspec

from qlora_profiles.errors import EXIT_INTERRUPTED
from qlora_run.needed import TALKING, check_installed


def child_environment() -> dict[str, str]:
    """Ours, with Python's UTF-8 for files; the console keeps its own encoding, and no letter can break it."""
    console = getattr(sys.stdout, "encoding", None) or "utf-8"
    return {
        **os.environ,
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": f"{console}:replace",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # a random.py in the current folder must not become the standard library's
    }


def run_job(module: str, job: msgspec.Struct) -> int:
    """Run ``python -m module JOB`` on this terminal; returns its exit code. Ctrl-C is the child's to answer.

    Raises:
        EnvironmentProblem: what it imports is not installed.
    """
    check_installed(*TALKING)
    command = [sys.executable, "-m", module, msgspec.json.encode(job).decode("utf-8")]
    sys.stdout.flush()
    child = subprocess.Popen(command, env=child_environment())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            if child.poll() is not None:
                return EXIT_INTERRUPTED
