"""Machines as the doctor sees them, written by hand: a report, what lies around it, and what was tried on it."""

from dataclasses import replace
from typing import Any

import msgspec

from qlora_profiles.errors import QloraRunError
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.machines import load_machine
from qlora_profiles.plan import Given, Request
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.diagnosis import CheckResult
from qlora_run.doctor.environment import Environment
from qlora_run.doctor.network import Hub
from qlora_run.doctor.registry import run_checks
from qlora_run.doctor.trials import TRIALS
from qlora_run.machine.selftest_results import SelftestResults, State, Trial
from qlora_run.planner.make_plan import PlanInput, make_plan

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
"""Of a torch 2.13 built for CUDA 13.0."""


def machine(name: str = "linux-12gb", **changes: Any) -> HardwareReport:
    """A shipped machine with other values; ``memory`` and ``platform`` take the values that differ."""
    report = load_machine(name)
    for part in ("memory", "disk", "platform", "torch"):
        if isinstance(changes.get(part), dict):
            changes[part] = msgspec.structs.replace(getattr(report, part), **changes[part])
    if isinstance(changes.get("packages"), dict):
        changes["packages"] = {k: v for k, v in (report.packages | changes["packages"]).items() if v}
    return msgspec.structs.replace(report, **changes)


def with_card(name: str = "linux-12gb", machine_changes: Any = None, **changes: Any) -> HardwareReport:
    """A shipped machine whose first card has other values."""
    report = machine(name, **(machine_changes or {}))
    first: Gpu = msgspec.structs.replace(report.gpus[0], **changes)
    return msgspec.structs.replace(report, gpus=(first, *report.gpus[1:]))


def environment_of(**changes: Any) -> Environment:
    """A machine on which nothing beside the hardware is amiss."""
    values: dict[str, Any] = {
        "looked": True,
        "virtual": True,
        "bits": 64,
        "unmet": (),
        "unsloth_unmet": (),
        "file_encoding": "utf-8",
        "text_encoding": "UTF-8",
        "clock_behind_seconds": 0.0,
        "long_paths": True,
        "longest_path": 40,
        "commit_free_bytes": 64 * 2**30,
        "cache_problem": "",
        "output_problem": "",
        "symlink_problem": "",
        "hub": Hub(host="hub", state="answers"),
        "token": False,
    }
    return Environment(**(values | changes))


def worked(report: HardwareReport) -> dict[str, Trial]:
    """Every trial as it ends where all is well."""
    device = "cuda" if report.cuda_gpus else "cpu"
    found: dict[str, Any] = {"device": device}
    trials = {plan.test: _ended(plan.test, plan.missing(report), found) for plan in TRIALS}
    if report.cuda_gpus:
        capabilities = [list(gpu.capability or (0, 0)) for gpu in report.cuda_gpus]
        bf16 = capabilities[0] >= [8, 0]
        more = {"capabilities": capabilities, "architectures": ARCHITECTURES, "bf16": bf16}
        trials["torch"] = msgspec.structs.replace(trials["torch"], found=found | more)
    return trials


def _ended(test: str, missing: str | None, found: dict[str, Any]) -> Trial:
    if missing:
        return Trial(test=test, state="skipped", said=missing)
    return Trial(test=test, state="ok", seconds=0.2, found=found)


def broke(test: str, said: str = "RuntimeError: no kernel image", state: State = "fail") -> Trial:
    """A trial that did not work."""
    return Trial(test=test, state=state, said=said)


def context(report: HardwareReport, *trials: Trial, model: str | None = None, **here: Any) -> CheckContext:
    """A machine with its plan; ``trials`` replace what worked, ``here`` what is well around it."""
    tried = worked(report) | {trial.test: trial for trial in trials}
    made = CheckContext(report=report, here=environment_of(**here), trials=tried, downloaded=False)
    given = {"model": Given(value=model, source="cli")} if model else {}
    asked = PlanInput(request=Request(given=given), report=report, only_planning=True)
    try:
        return replace(made, plan=make_plan(asked))
    except QloraRunError as error:
        return replace(made, refusal=error)


def found(made: CheckContext) -> dict[str, CheckResult]:
    """The results by id; of several the worst."""
    severity = ("skipped", "ok", "note", "warn", "fail")
    return {f.id: f for f in sorted(run_checks(made), key=lambda f: severity.index(f.verdict))}


def selftest_results_of(*trials: Trial) -> SelftestResults:
    """What a cache would say."""
    return SelftestResults(trials={trial.test: trial for trial in trials})
