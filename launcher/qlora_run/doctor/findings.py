"""What one look found; it does not know yet which check it belongs to."""

from msgspec import Struct

from qlora_run.doctor.diagnosis import Fix, Verdict


class Finding(Struct, frozen=True, kw_only=True):
    """The verdict with what was seen, what it rests on, what follows from it for training, and what mends it."""

    verdict: Verdict
    seen: str
    evidence: str = ""
    consequence: str = ""
    fix: Fix | None = None


def ok(seen: str, evidence: str = "") -> Finding:
    """Nothing to do."""
    return Finding(verdict="ok", seen=seen, evidence=evidence)


def note(seen: str, consequence: str = "", fix: Fix | None = None, evidence: str = "") -> Finding:
    """Worth knowing; training is as good as it is without a change."""
    return Finding(verdict="note", seen=seen, consequence=consequence, fix=fix, evidence=evidence)


def warn(seen: str, consequence: str, fix: Fix, evidence: str = "") -> Finding:
    """Training works, but slower, smaller, or at a risk."""
    return Finding(verdict="warn", seen=seen, consequence=consequence, fix=fix, evidence=evidence)


def fail(seen: str, consequence: str, fix: Fix, evidence: str = "") -> Finding:
    """Training does not work, or not on the card, until this is mended."""
    return Finding(verdict="fail", seen=seen, consequence=consequence, fix=fix, evidence=evidence)


def skipped(reason: str) -> Finding:
    """Not looked at, and why."""
    return Finding(verdict="skipped", seen=reason)
