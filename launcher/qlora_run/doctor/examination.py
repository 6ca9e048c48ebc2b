"""The whole examination: look, try, plan, decide."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from qlora_profiles.errors import EnvironmentProblem, QloraRunError
from qlora_run.doctor.capacity import next_command, what_can_be_trained
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.diagnosis import Diagnosis, diagnose
from qlora_run.doctor.environment import Environment, read_environment
from qlora_run.doctor.registry import run_checks
from qlora_run.doctor.remedies import PIP
from qlora_run.doctor.trials import try_all
from qlora_run.machine.selftest_results import SelftestResults, load_results, remember
from qlora_run.planner.make_plan import PlanInput, machine_report, make_plan, model_folder

if TYPE_CHECKING:
    from qlora_profiles.plan import Request, RunPlan

T = TypeVar("T")

ANOTHER_MACHINE = "another machine: nothing can be tried on it"
QUICK = "not tried with --quick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was looked at, and what came of it."""

    context: CheckContext
    diagnosis: Diagnosis


def examine(inputs: PlanInput, *, quick: bool = False) -> Examination:
    """Examine this machine, or the one that ``inputs`` names; ``quick`` tries nothing and asks no network.

    Raises:
        UserError: no such machine, or a report of one that cannot be read.
    """
    if inputs.machine or inputs.report is not None:
        return examination_of(
            _planned(inputs, CheckContext(report=machine_report(inputs), untried=ANOTHER_MACHINE), SelftestResults())
        )
    report = machine_report(inputs)
    if quick:
        known = load_results(report)
        here = _here(inputs, ask_hub=False)
        context = CheckContext(report=report, here=here, trials=known.trials, untried=QUICK, remembered=True)
        return examination_of(_planned(inputs, context, known))
    environment = _InThread(lambda: _here(inputs, ask_hub=True))
    trials = try_all(report)
    remember(report, trials)
    context = CheckContext(report=report, here=environment.result(), trials=trials)
    return examination_of(_planned(inputs, context, SelftestResults(trials=trials)))


def examination_of(context: CheckContext) -> Examination:
    """Run every check on a context; never raises."""
    can = what_can_be_trained(context)
    return Examination(context=context, diagnosis=diagnose(run_checks(context), can, next_command(context)))


class _InThread(Generic[T]):
    """Work that goes on beside the trials."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._results: list[T] = []
        self._thread = threading.Thread(target=lambda: self._results.append(work()), name="environment")
        self._thread.start()

    def result(self) -> T:
        """Its result, once it is there."""
        self._thread.join()
        return self._results[0]


def _here(inputs: PlanInput, *, ask_hub: bool) -> Environment:
    output, cache = (inputs.request.value(name) for name in ("output", "cache"))
    return read_environment(Path(output) if output else None, Path(cache) if cache else None, ask_hub=ask_hub)


def _planned(inputs: PlanInput, context: CheckContext, known: SelftestResults) -> CheckContext:
    """The context with its plan, or with what speaks against one."""
    report = context.report
    inputs = replace(inputs, report=report, machine=None, only_planning=True, selftest_results=known)
    try:
        plan = make_plan(inputs)
    except QloraRunError as error:
        return replace(context, refusal=error)
    except ImportError as error:  # a half-installed environment is what people call a doctor for
        missing = error.name or str(error)
        fix = f"{PIP} -c constraints.txt ."
        return replace(context, refusal=EnvironmentProblem(f"the package {missing} cannot be imported", fix))
    return replace(context, plan=plan, downloaded=_downloaded(inputs.request, plan) if context.here.looked else None)


def _downloaded(request: "Request", plan: "RunPlan") -> bool | None:
    """Whether the plan's model lies on this disk with its weights."""
    try:
        return model_folder(request.giving("model", plan.recipe["model"].given())) is not None
    except (QloraRunError, OSError, ValueError):
        return None
