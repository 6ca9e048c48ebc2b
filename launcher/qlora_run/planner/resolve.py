"""From a report, a request, a model and data to a plan in which every setting says why."""

from collections.abc import Mapping
from dataclasses import replace

from qlora_core.execution.rungs import SIZES
from qlora_profiles.catalogue import check_profile
from qlora_profiles.errors import UserError
from qlora_profiles.facts import DataFacts, ModelFacts, TimeEstimate
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import Request, Resolved, RunPlan
from qlora_profiles.registry import flag, lookup, settings
from qlora_profiles.settings import Scope
from qlora_run.machine.measurements.records import Calibration
from qlora_run.machine.selftest_results import SelftestResults
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner.context import PlanningContext, devices_given
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.speed import estimate_time, total_steps
from qlora_run.planner.cost.weights import adapter_params
from qlora_run.planner.notes import notes_of
from qlora_run.planner.rules.defaults import why_default
from qlora_run.planner.rules.disk import check_disk
from qlora_run.planner.rules.kernels import check_optimizer
from qlora_run.planner.rules.recipe import shortened
from qlora_run.planner.rules.schedule import check_schedule
from qlora_run.planner.rules.table import apply_rules
from qlora_run.planner.search.fit import Fit, check_trainable, close_call, find_fit, runner_up, settle
from qlora_run.planner.suggestions import cannot_fit, execution_changes, recipe_changes, taken

PEFT_ONLY: Mapping[str, str | None] = {"peft": None}
"""Backends by name, with the reason why one cannot run here."""


def resolve(
    report: HardwareReport,
    request: Request,
    model: ModelFacts,
    data: DataFacts,
    backends: Mapping[str, str | None] = PEFT_ONLY,
    calibration: Calibration | None = None,
    selftest_results: SelftestResults | None = None,
) -> RunPlan:
    """The plan of a run: the recipe as given, and the fastest execution of it that fits this machine.

    Where none surely fits, but the smallest may, that one is planned: its ``memory`` is then ``close``, and the card
    decides before the first step. A value that somebody gave is kept, or the plan fails with the reason and a value
    that works; what is learned changes only where ``allow_recipe_change`` says so. ``calibration`` is what earlier
    runs measured here, ``selftest_results`` what was tried here.

    Raises:
        UserError: nothing fits, or a value is out of what the model, the data or the disk allow.
        EnvironmentProblem: the software of this machine lacks what a given value needs.
    """
    check_trainable(model)
    if data.train_rows < 1:
        raise UserError(f"{data.path}: no rows left to train on", "more rows, or a smaller --val-size")
    profile = request.profile
    differences = check_profile(profile, report, devices_given(request.given)) if profile else []
    calibration = calibration or Calibration()
    context = PlanningContext(
        report=report,
        model=model,
        data=data,
        given=request.given,
        backends=backends,
        profile=profile.name if profile else None,
        recipe_name=request.recipe_name,
        calibration=calibration,
        selftest_results=selftest_results or SelftestResults(),
    )
    _decide(context)
    fit = find_fit(context) or close_call(context)
    if fit is None:
        context, fit = _changed(context)
    settle(context, fit)
    context.notes += [*notes_of(context, fit), *(difference.text for difference in differences), *request.notes]
    context.notes += calibration.notes
    return _plan(context, fit)


def _decide(s: PlanningContext) -> None:
    """Decide everything but method, token budget and recomputed layers."""
    for name, setting in settings().items():
        if name in s.given and not setting.tuned:
            s.resolved[name] = s.given[name].resolved()
        elif not setting.tuned:
            s.resolved[name] = Resolved(setting.default, "default", why_default(setting))
    s.resolved["model"] = s.given["model"].resolved() if "model" in s.given else _default_model(s)
    s.targets = tuple(discover_targets(s.model, s.value("target_modules")))
    _check_layers(s)
    apply_rules(s)
    check_optimizer(s)
    s.resolved["output"] = s.given["output"].resolved() if "output" in s.given else _output(s)


def _default_model(s: PlanningContext) -> Resolved:
    return Resolved(s.model.source, "probe", "you named none; this one trains well on this machine")


def _output(s: PlanningContext) -> Resolved:
    return Resolved(f"runs/{s.model.name.lower()}", "default", "named after the model")


def _check_layers(s: PlanningContext) -> None:
    """Raises: UserError for more layers, of whatever sort, than the model has."""
    for name in (name for name in SIZES if lookup(name).doc.unit == "layers"):
        given = s.given.get(name)
        if given is not None and given.value > s.model.num_layers:
            has = f"{s.model.name} has {s.model.num_layers} layers"
            raise UserError(f"{name} {given.value}: {has}", f"{flag(lookup(name))} {s.model.num_layers}")


def _changed(s: PlanningContext) -> tuple[PlanningContext, Fit]:
    """The nearest recipe that fits, where changing it is allowed.

    Raises:
        UserError: it is not, or nothing fits.
    """
    allowed = s.value("allow_recipe_change") and next(execution_changes(s), None) is None
    change = next(recipe_changes(s), None) if allowed else None
    if change is None:
        raise cannot_fit(s)
    data = shortened(s.data, change.values["max_length"]) if "max_length" in change.values else s.data
    changed = replace(s, given=taken(s, change), data=data, resolved={}, notes=[])
    _decide(changed)
    fit = find_fit(changed)
    if fit is None:
        raise cannot_fit(s)
    changed.notes.append(f"the recipe was changed so that it fits: {change.text}")
    return changed, fit


def _plan(s: PlanningContext, fit: Fit) -> RunPlan:
    trained = s.model.params if s.value("method") == "full" else adapter_params(s.model, s.targets, s.value("lora_r"))
    check_disk(s.report.disk.output_free_bytes, s.model, trained, s.value)
    check_schedule(_steps(s), s.value)
    return RunPlan(
        recipe=_scope(s, "recipe"),
        execution=_scope(s, "execution"),
        run=_scope(s, "run"),
        report=s.report,
        model=s.model,
        data=s.data,
        memory=fit.found.best.memory,
        time=plan_time(s, fit),
        profile=s.profile,
        recipe_name=s.recipe_name,
        runner_up=runner_up(s, fit),
        notes=tuple(s.notes),
    )


def _scope(s: PlanningContext, scope: Scope) -> dict[str, Resolved]:
    return {name: s.resolved[name] for name, setting in settings().items() if setting.scope == scope}


def _steps(s: PlanningContext) -> int:
    return total_steps(s.data.train_rows, s.value("examples_per_step"), s.value("epochs"), s.value("max_steps"))


def plan_time(s: PlanningContext, fit: Fit) -> TimeEstimate:
    """How long the run takes with what was found."""
    steps = _steps(s)
    inputs = CostInputs.from_values(s.value, s.value("method"), s.report.torch_version)
    scale = s.measured.speed_scale if s.measured else None
    return estimate_time(s.report, s.gpu, inputs, steps, fit.found.best.step_seconds, scale)
