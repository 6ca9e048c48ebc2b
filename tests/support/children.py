"""Processes that a test can start, and whether one is gone."""

import sys
import time
from pathlib import Path

import psutil

PATIENCE_SECONDS = 60

STARTS_ANOTHER = """
import subprocess, sys, time
from pathlib import Path
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(str(other.pid))
if sys.argv[2:] == ["leave"]:
    raise SystemExit
time.sleep(600)
"""


def python(code: str, *words: str) -> list[str]:
    """The command that runs ``code``."""
    return [sys.executable, "-c", code, *words]


def pid_in(path: Path) -> int:
    """The number of a process that another one writes to a file."""
    for _ in range(PATIENCE_SECONDS * 20):
        if path.exists() and (text := path.read_text(encoding="utf-8")):
            return int(text)
        time.sleep(0.05)
    raise TimeoutError(path)


def is_gone(pid: int) -> bool:
    """Dead, or dead and not yet reaped by whoever inherited it."""
    for _ in range(PATIENCE_SECONDS * 10):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False
