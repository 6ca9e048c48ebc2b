"""What one check found, and what all of them together mean."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from qlora_profiles.errors import EXIT_ENVIRONMENT, EXIT_OK

Verdict = Literal["ok", "note", "warn", "fail", "skipped"]
SEVERITY: tuple[Verdict, ...] = ("fail", "warn", "note", "ok", "skipped")
EXIT_WARNINGS = 1
"""Exit code of a doctor that only warns."""


class Fix(Struct, frozen=True, kw_only=True):
    """What mends it on the system that was looked at.

    ``say`` is what a person reads: the command itself where one does it, else the place of the setting.
    ``commands`` are plain commands for this system's own shell; ``safe`` ones change this Python environment alone.
    """

    say: str
    commands: tuple[str, ...] = ()
    safe: bool = False


class CheckResult(Struct, frozen=True, kw_only=True):
    """A finding with the ``id`` of its check; a ``minor`` one is only named while it is well.

    ``evidence`` is what the verdict rests on, for whoever wants to judge it; a note costs nothing and may be left.
    """

    id: str
    verdict: Verdict
    seen: str
    evidence: str = ""
    consequence: str = ""
    fix: Fix | None = None
    minor: bool = False


class Diagnosis(Struct, frozen=True, kw_only=True):
    """The results of all checks, worst first, with one line of summary, the next command, and the exit code."""

    checks: tuple[CheckResult, ...]
    summary: str
    next: str
    exit_code: int


def diagnose(results: Sequence[CheckResult], can: str, next_command: str) -> Diagnosis:
    """Put the results in order; ``can`` says what can be trained here, ``next_command`` what to run then."""
    ordered = tuple(sorted(results, key=lambda f: SEVERITY.index(f.verdict)))
    failed = [f.id for f in ordered if f.verdict == "fail"]
    if failed:
        first = next(f for f in ordered if f.verdict == "fail")
        can, next_command = _not_ready(failed), first.fix.say if first.fix else "qlora-run doctor"
    return Diagnosis(checks=ordered, summary=can, next=next_command, exit_code=exit_code(results))


def _not_ready(failed: Sequence[str]) -> str:
    count = f"{len(failed)} problem{'s' if len(failed) > 1 else ''}"
    return f"Not ready: {count} ({', '.join(dict.fromkeys(failed))}). Mend the first, then: qlora-run doctor"


def exit_code(results: Sequence[CheckResult]) -> int:
    """0 ready, 1 with warnings, 3 cannot train."""
    verdicts = {f.verdict for f in results}
    if "fail" in verdicts:
        return EXIT_ENVIRONMENT
    return EXIT_WARNINGS if "warn" in verdicts else EXIT_OK
