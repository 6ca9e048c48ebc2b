"""One finding of the doctor, and what all of them together mean."""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from qlora_profiles.errors import EXIT_ENVIRONMENT, EXIT_OK

Verdict = Literal["ok", "slow", "note", "fail"]
SEVERITY: tuple[Verdict, ...] = ("fail", "slow", "note", "ok")
EXIT_WARNINGS = 1


class Finding(Struct, frozen=True, kw_only=True):
    """What was looked at, what was seen, and the command or setting that mends it."""

    id: str
    verdict: Verdict
    seen: str
    fix: str | None = None


class Diagnosis(Struct, frozen=True, kw_only=True):
    """Every finding, worst first, with one line of summary."""

    checks: tuple[Finding, ...]
    summary: str
    exit_code: int


def diagnose(findings: Sequence[Finding], can: str) -> Diagnosis:
    """Put the findings in order; ``can`` says what can be trained here."""
    ordered = tuple(sorted(findings, key=lambda f: SEVERITY.index(f.verdict)))
    problems = sum(f.verdict == "fail" for f in findings)
    return Diagnosis(checks=ordered, summary=_summary(problems, can), exit_code=_exit_code(findings))


def _summary(problems: int, can: str) -> str:
    if not problems:
        return can
    return f"Not ready: {problems} problem{'s' if problems > 1 else ''}. Mend the first, then: qlora-run doctor"


def _exit_code(findings: Sequence[Finding]) -> int:
    if any(f.verdict == "fail" for f in findings):
        return EXIT_ENVIRONMENT
    return EXIT_WARNINGS if any(f.verdict == "slow" for f in findings) else EXIT_OK
