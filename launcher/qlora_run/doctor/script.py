"""The fixes as a script for the system at hand, in the plain commands of its own shell; and running the safe ones."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from qlora_profiles.hardware import HardwareReport
from qlora_run.doctor.diagnosis import CheckResult

Runner = Callable[[Sequence[str]], int]


def script(results: Sequence[CheckResult], report: HardwareReport) -> str:
    """A ``.cmd`` file on Windows, a shell script elsewhere: what is wrong as comments, what mends it as commands."""
    mark = "REM " if report.is_windows else "# "
    first = "@echo off" if report.is_windows else "#!/bin/sh"
    lines = [first, f"{mark}made by: qlora-run doctor --fix", *_body(results, mark)]
    return ("\r\n" if report.is_windows else "\n").join(lines) + ("\r\n" if report.is_windows else "\n")


def _body(results: Sequence[CheckResult], mark: str) -> Iterator[str]:
    """Each fix once; one that only a person can do stays a comment."""
    told: set[str] = set()
    for result in worth_fixing(results):
        assert result.fix is not None
        yield f"{mark}{result.verdict} {result.id}: {' '.join(result.seen.split())}"
        if result.fix.say in told:
            continue
        told.add(result.fix.say)
        yield from result.fix.commands or (f"{mark}by hand: {result.fix.say}",)
    if not told:
        yield f"{mark}nothing to mend"


def worth_fixing(results: Sequence[CheckResult]) -> list[CheckResult]:
    """Problems and warnings that have a fix; notes may be left as they are."""
    return [f for f in results if f.verdict in ("fail", "warn") and f.fix is not None]


def safe_commands(results: Sequence[CheckResult]) -> list[str]:
    """Commands that change this Python environment alone, each once, in order."""
    fixes = (f.fix for f in worth_fixing(results))
    return list(dict.fromkeys(line for fix in fixes if fix and fix.safe for line in fix.commands))


def apply(lines: Sequence[str], run: Runner | None = None) -> str | None:
    """Run install commands in this very Python; the first that failed, or ``None``. Raises OSError: none can be run."""
    run = run or (lambda words: subprocess.run(words, check=False).returncode)
    return next((line for line in lines if run(words_of(line)) != 0), None)


def words_of(line: str) -> list[str]:
    """A line as the words of a command of this interpreter: ``python`` is this one, ``uv`` installs into it."""
    words = shlex.split(line)
    if words[0] == "python":
        return [sys.executable, *words[1:]]
    return [sys.executable, "-m", "uv", *words[1:], "--python", sys.executable]
