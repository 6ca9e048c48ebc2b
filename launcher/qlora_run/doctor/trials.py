"""Trying things out: the core's self-tests in child processes with time limits, several at once.

Tests that need torch share a child, for importing it takes seconds; what may take the process down with it has one
of its own. A child that dies or hangs costs the test that was at work: the ones behind it get a new child.
"""

import sys
from collections.abc import Sequence

from qlora_profiles.hardware import HardwareReport
from qlora_run.doctor.check_context import is_full
from qlora_run.doctor.trial_child import FIRST_SECONDS, NO_TORCH, TrialPlan, run_groups
from qlora_run.machine.selftest_results import BROKEN, Trial


def _needs_cuda(report: HardwareReport) -> str | None:
    return None if report.cuda_gpus else "needs an NVIDIA card and a CUDA build of torch"


def _needs_bitsandbytes(report: HardwareReport) -> str | None:
    return None if report.version_of("bitsandbytes") else "bitsandbytes is not installed"


def _needs_triton(report: HardwareReport) -> str | None:
    installed = report.version_of("triton") or report.version_of("triton-windows")
    return _needs_cuda(report) or (None if installed else "Triton is not installed")


def _needs_both(report: HardwareReport) -> str | None:
    return _needs_triton(report) or _needs_bitsandbytes(report)


def _needs_liger(report: HardwareReport) -> str | None:
    missing = None if report.version_of("liger-kernel") else "liger-kernel is not installed"
    return _needs_triton(report) or missing


def _needs_unsloth(report: HardwareReport) -> str | None:
    return _needs_cuda(report) or (None if report.version_of("unsloth") else "unsloth is not installed")


def _needs_cards(report: HardwareReport) -> str | None:
    return None if len(report.cuda_gpus) > 1 else "there is one card at most"


TRIALS = (
    TrialPlan(test="torch", child="torch", limit_seconds=FIRST_SECONDS),
    TrialPlan(test="device", child="torch", limit_seconds=30),
    TrialPlan(test="adamw", child="torch", limit_seconds=60),
    TrialPlan(test="nf4", child="torch", limit_seconds=60, missing=_needs_bitsandbytes),
    TrialPlan(test="int8", child="torch", limit_seconds=30, missing=_needs_bitsandbytes),
    TrialPlan(test="adam8bit", child="torch", limit_seconds=30, missing=_needs_bitsandbytes),
    TrialPlan(test="varlen", child="torch", limit_seconds=30, missing=_needs_cuda),
    TrialPlan(test="graphs", child="torch", limit_seconds=30, missing=_needs_cuda),
    TrialPlan(test="workers", child="torch", limit_seconds=60),
    TrialPlan(test="triton", child="triton", limit_seconds=FIRST_SECONDS, missing=_needs_triton),
    TrialPlan(test="dequantize", child="triton", limit_seconds=60, missing=_needs_both),
    TrialPlan(test="cross_entropy", child="triton", limit_seconds=60, missing=_needs_triton),
    TrialPlan(test="liger", child="triton", limit_seconds=60, missing=_needs_liger),
    TrialPlan(test="unsloth", child="unsloth", limit_seconds=FIRST_SECONDS, missing=_needs_unsloth),
    TrialPlan(test="all_reduce", child="ranks", limit_seconds=FIRST_SECONDS, missing=_needs_cards),
)
"""Every trial in its order; the first of a child imports torch. The time limits are set by hand."""

OFF_CARD = ("torch", "workers")
"""Trials whose failure is not for want of a card's memory."""


def try_all(report: HardwareReport, command: Sequence[str] = ()) -> dict[str, Trial]:
    """Run every trial that has something to try here; never raises, never waits past the limits.

    ``command`` starts a child before the names of its tests (default: the core's self-test in this Python).
    """
    start = command or (sys.executable, "-m", "qlora_core.selftest")
    missing = {plan.test: plan.missing(report) for plan in TRIALS}
    done = {test: Trial(test=test, state="skipped", said=reason or NO_TORCH) for test, reason in missing.items()}
    children = list(dict.fromkeys(plan.child for plan in TRIALS if missing[plan.test] is None))
    if report.torch.version is None:
        return {test: Trial(test=test, state="skipped", said="torch is not installed") for test in done}
    groups = [[p for p in TRIALS if p.child == child and missing[p.test] is None] for child in children]
    done |= {trial.test: trial for trial in run_groups(groups, start)}
    return _blamed(_excused(report, {plan.test: done[plan.test] for plan in TRIALS}))


def _excused(report: HardwareReport, trials: dict[str, Trial]) -> dict[str, Trial]:
    """What failed for want of memory on a full card proves nothing, and must not be remembered as broken."""
    if not any(map(is_full, report.cuda_gpus)):
        return trials
    return {test: _in_doubt(trial) for test, trial in trials.items()}


def _in_doubt(trial: Trial) -> Trial:
    refused = trial.found.get("refused")
    if refused is None and (trial.state not in BROKEN or trial.test in OFF_CARD):
        return trial
    said = f"the card has no free memory to try it in: {refused or trial.said}"
    return Trial(test=trial.test, state="unavailable", said=said)


def _blamed(trials: dict[str, Trial]) -> dict[str, Trial]:
    """Where torch does not import, that is the one thing to say."""
    if trials["torch"].state not in BROKEN:
        return trials
    return {
        test: t if test == "torch" else Trial(test=test, state="skipped", said=NO_TORCH) for test, t in trials.items()
    }
