"""The execution of a plan searched once more with what was measured on its own card; nothing else changes."""

from collections.abc import Collection
from dataclasses import replace

from msgspec import structs

from qlora_core.execution.rungs import FILLERS, SEARCHED, SWITCHES
from qlora_profiles.plan import PERSON, Resolved, RunPlan, with_execution
from qlora_profiles.registry import settings
from qlora_run.machine.measurements.records import Calibration
from qlora_run.machine.run_key import limits_of, run_key
from qlora_run.machine.selftest_results import SelftestResults
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.resolve import plan_time
from qlora_run.planner.rules.table import RULES
from qlora_run.planner.search.fit import Fit, runner_up, search_for, settle
from qlora_run.planner.search.search import Candidate, Found, Search

WORTH_CHANGING = 0.98
"""Another execution must promise to take less than this share of the time: trying it costs seconds. Set by hand."""


def retuned(
    plan: RunPlan,
    calibration: Calibration,
    selftest_results: SelftestResults | None = None,
    settled: Collection[str] = (),
) -> RunPlan:
    """The plan of a run whose execution was measured, with the one that ``calibration`` calls for, or the one it has
    where none is worth the change.

    ``selftest_results`` are of this machine: what does not work is not chosen. ``settled`` are names of settings that
    the card has shown to be as they must be.
    """
    s = _context(plan, calibration, selftest_results or SelftestResults(), settled)
    search = search_for(s, s.value("method"))
    found = search.run()
    if found is None:
        return plan
    fit = Fit(method=plan.recipe["method"], search=search, found=_worth(search, found, plan))
    settle(s, fit)
    searched = {name: s.resolved[name] for name in SEARCHED}
    return structs.replace(
        plan,
        execution=plan.execution | searched,
        memory=fit.found.best.memory,
        time=plan_time(s, fit),
        runner_up=runner_up(s, fit),
    )


def as_measured(plan: RunPlan, calibration: Calibration, selftest_results: SelftestResults | None = None) -> RunPlan:
    """The plan with an execution that this very run was measured with on this machine, where that fits and is nearly
    as fast as the plan's: it need not be measured again. Else the plan as it is."""
    decided = {name for name in SEARCHED if plan.execution[name].source in PERSON}
    values = plan.execution_values()
    for limits, by_it in calibration.of_run(run_key(plan, values)):
        known = set(limits) == set(SEARCHED)  # or another version wrote it
        if not known or plan.memory.close or any(limits[name] != getattr(values, name) for name in decided):
            continue
        measured = with_execution(plan, limits, "measured here before")
        if (kept := retuned(measured, by_it, selftest_results)).execution_values() == measured.execution_values():
            return kept
    return plan


def _context(
    plan: RunPlan, calibration: Calibration, selftest_results: SelftestResults, settled: Collection[str]
) -> PlanningContext:
    """Everything decided as in the plan; what a person decided, and what is loaded already, stays."""
    resolved = plan.recipe | plan.execution | plan.run
    free = [name for name in SEARCHED if resolved[name].source not in PERSON and name not in settled]
    s = PlanningContext(
        report=plan.report,
        model=plan.model,
        data=plan.data,
        given={name: r.given() for name, r in resolved.items() if name not in free},
        backends={plan.execution_values().backend: None},
        profile=plan.profile,
        recipe_name=plan.recipe_name,
        targets=tuple(discover_targets(plan.model, plan.recipe_values().target_modules)),
        calibration=calibration,
        selftest_results=selftest_results,
        resolved=resolved,
    )
    for name in (name for name in free if not settings()[name].tuned):
        s.resolved[name] = Resolved(settings()[name].default, "default", "not needed")
    for rule in (rule for rule in RULES if rule.name in free):
        s.resolved[rule.name] = rule.decide(s)
    return s


def _worth(search: Search, found: Found, plan: RunPlan) -> Found:
    """What was found, or the execution that was measured: where that fits and is nearly as fast, it stays.

    Its memory is no prediction, so its error bar ends at the budget; with a longer one it would be left, and come
    back to once another was measured.
    """
    now = _running(search, plan)
    if search.budget_bytes is not None:
        room = max(0, search.budget_bytes - now.memory.peak_bytes)
        now = replace(now, memory=structs.replace(now.memory, error_bytes=min(now.memory.error_bytes, room)))
    tokens = search.largest_batch(now.token_budget, now.variant)
    has_room = now.memory.fits and now.variant.holds(tokens, now.layers_recomputed)
    if not has_room or found.best.step_seconds < WORTH_CHANGING * now.step_seconds:
        return found
    return replace(found, best=now, runner_up=found.best if found.best != now else found.runner_up)


def _running(search: Search, plan: RunPlan) -> Candidate:
    execution = plan.execution_values()
    switches, filled = (limits_of(execution, names) for names in (SWITCHES, FILLERS))
    variant = next((v for v in search.variants if v.switches == switches), search.variants[0])
    return search.candidate(execution.token_budget, execution.layers_recomputed, variant, filled)
