"""From a run's peak to a measurement in the cache."""

from dataclasses import dataclass
from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution
from qlora_run.calibration.records import Kernels, Machine, Measurement, Record, machine_of
from qlora_run.calibration.store import path_of, read, write
from qlora_run.model_facts.targets import discover_targets

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
        step_seconds: a typical step's time, where enough steps were made.
    """

    execution: Execution
    largest_tokens: int
    several_micro_batches: bool
    reserved_bytes: int
    outside_bytes: int
    step_seconds: float | None = None


def record(plan: RunPlan, measured: Measured, folder: Path | None = None) -> Path | None:
    """Add a measurement to the cache; the file, or ``None`` where there is nothing to learn or no place for it."""
    machine = machine_of(plan.report)
    sensible = 0 < measured.outside_bytes <= CONTEXT_AT_MOST and measured.reserved_bytes > 0
    if machine is None or measured.execution.device != "cuda" or not sensible:
        return None
    before = _record(machine, Kernels.of(measured.execution), folder)
    return write(before.plus(measurement_of(plan, measured)), folder)


def _record(machine: Machine, kernels: Kernels, folder: Path | None) -> Record:
    try:
        found = read(path_of(machine, kernels, folder))
    except UserError:
        return Record(machine=machine, kernels=kernels)
    return found if (found.machine, found.kernels) == (machine, kernels) else Record(machine=machine, kernels=kernels)


def measurement_of(plan: RunPlan, measured: Measured) -> Measurement:
    """The peak beside what is predicted for just that micro-batch without any measurement."""
    from qlora_run.resolve.estimate import costs_of
    from qlora_run.resolve.footprint import method_context_bytes
    from qlora_run.resolve.memory import passing_bytes, peak

    recipe = plan.recipe_values()
    targets = discover_targets(plan.model, recipe.target_modules)
    costs = costs_of(plan.model, targets, recipe, measured.execution, plan.report)
    point = measured.largest_tokens, measured.execution.layers_recomputed
    predicted = passing_bytes(costs, *point, accumulating=measured.several_micro_batches)
    whole = peak(costs, *point, accumulating=measured.several_micro_batches).peak_bytes
    staying = whole - costs.footprint.context_bytes - predicted
    return Measurement(
        context_bytes=max(0, measured.outside_bytes - method_context_bytes(recipe.method)),
        predicted_passing_bytes=predicted,
        measured_passing_bytes=max(1, measured.reserved_bytes - staying),
        predicted_step_seconds=_predicted_seconds(plan, measured),
        measured_step_seconds=measured.step_seconds,
    )


def _predicted_seconds(plan: RunPlan, measured: Measured) -> float | None:
    """The plan's own time of a step, without what an earlier measurement made of it; ``None`` for another execution."""
    if measured.step_seconds is None or measured.execution != plan.execution_values():
        return None
    return plan.time.step_seconds / (plan.time.measured_scale or 1.0)
