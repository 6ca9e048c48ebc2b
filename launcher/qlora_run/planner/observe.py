"""From a run's peak to a measurement in the cache."""

from dataclasses import dataclass
from pathlib import Path

from qlora_core.execution.graph_sizes import graph_sizes
from qlora_profiles.facts import Ceilings
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution, values_of
from qlora_run.machine.measurements.records import Calibration, Kernels, Measurement, Record, machine_of
from qlora_run.machine.measurements.store import name_of, store
from qlora_run.machine.run_key import limits_of, run_key
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner.cost.cuda_overhead import own_context_bytes
from qlora_run.planner.cost.estimate import costs_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import Costs, passing_bytes, peak
from qlora_run.planner.cost.speed import rates, step_seconds, work_of_step

CONTEXT_AT_MOST = 2**31
"""More outside the allocator than this is somebody else's memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a run, or a part of one that computed the same way throughout, held and took.

    Attributes:
        execution: how it computed: the plan's, or what it had become.
        largest_tokens: tokens of its largest micro-batch.
        several_micro_batches: whether some step had more than one.
        reserved_bytes: most that torch's allocator held.
        outside_bytes: what the process held beside it, by the driver, at that time.
        step_tokens: tokens of a usual step,
        step_seconds: and its time, where enough steps were made.
        ceilings: what the card reaches at most, where that was measured too.
    """

    execution: Execution
    largest_tokens: int
    several_micro_batches: bool
    reserved_bytes: int
    outside_bytes: int
    step_tokens: float | None = None
    step_seconds: float | None = None
    ceilings: Ceilings | None = None


def record(plan: RunPlan, measured: Measured, folder: Path | None = None) -> Path | None:
    """Add a measurement to the cache; the file, or ``None`` where there is nothing to learn or no place for it."""
    machine = machine_of(plan.report, plan.execution_values().devices)
    sensible = 0 < measured.outside_bytes <= CONTEXT_AT_MOST and measured.reserved_bytes > 0
    if machine is None or measured.execution.device != "cuda" or not sensible:
        return None
    new = Record(machine=machine, kernels=Kernels.of(measured.execution))

    def plus(found: Record | None) -> Record:
        same = found is not None and (found.machine, found.kernels) == (new.machine, new.kernels)
        before = found if found and same else new
        ceilings = measured.ceilings or before.ceilings
        return before.plus(measurement_of(plan, measured, ceilings), ceilings)

    return store(folder).update(name_of(new.machine, new.kernels), plus)


def calibrated_by(plan: RunPlan, measured: Measured) -> Calibration:
    """A calibration by one measurement alone: what was measured on a run's own card says most about that run."""
    machine = machine_of(plan.report, plan.execution_values().devices)
    if machine is None:
        return Calibration()
    ceilings = measured.ceilings
    found = Record(machine=machine, kernels=Kernels.of(measured.execution), ceilings=ceilings)
    return Calibration(records=(found.plus(measurement_of(plan, measured, ceilings)),), own_run=True)


def measurement_of(plan: RunPlan, measured: Measured, ceilings: Ceilings | None = None) -> Measurement:
    """The peak beside what is predicted for just that micro-batch without any measurement."""
    recipe = plan.recipe_values()
    targets = discover_targets(plan.model, recipe.target_modules)
    costs = costs_of(plan.model, targets, recipe, measured.execution, plan.report)
    execution, tokens = measured.execution, measured.largest_tokens
    if execution.cuda_graphs:
        tokens = graph_sizes(max(execution.token_budget, tokens))[0]
    accumulating = measured.several_micro_batches or execution.cuda_graphs
    predicted = passing_bytes(costs, tokens, execution.layers_recomputed, accumulating)
    whole = peak(costs, tokens, execution.layers_recomputed, accumulating=accumulating).peak_bytes
    staying = whole - costs.overhead.context_bytes - predicted
    own = own_context_bytes(recipe.method, execution.cuda_graphs, execution.offload_activations)
    return Measurement(
        context_bytes=max(0, measured.outside_bytes - own),
        predicted_passing_bytes=predicted,
        measured_passing_bytes=max(1, measured.reserved_bytes - staying),
        predicted_step_seconds=_predicted_seconds(plan, measured, costs, ceilings),
        measured_step_seconds=measured.step_seconds,
        of_run=run_key(plan, measured.execution),
        limits=limits_of(measured.execution),
    )


def _predicted_seconds(plan: RunPlan, measured: Measured, costs: Costs, ceilings: Ceilings | None) -> float | None:
    """The time of a step of so many tokens as the model has it before any measurement but the card's ceilings."""
    from qlora_run.planner.cost.rungs import work_with

    if measured.step_seconds is None or measured.step_tokens is None:
        return None
    recipe, execution = plan.recipe_values(), measured.execution
    inputs = CostInputs.of(recipe, execution, plan.report.torch_version)
    work = work_of_step(plan.model, plan.data, inputs, costs, recipe.examples_per_step, recipe.max_length)
    work = work_with(work.of(measured.step_tokens), values_of(execution))
    machine = rates(plan.report, next(iter(plan.cards()), None), inputs, ceilings)
    return step_seconds(work, machine, execution.token_budget, execution.layers_recomputed)
