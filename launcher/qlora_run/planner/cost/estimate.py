"""The predicted peak of a plan's settings on a machine, in one call."""

from collections.abc import Sequence

from qlora_profiles.facts import LinearShape, MemoryEstimate, ModelFacts
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.settings import Execution, Recipe, values_of
from qlora_run.machine.measurements.records import Calibration, Kernels
from qlora_run.planner.cost.cuda_overhead import cuda_overhead_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import Costs, memory_costs, peak
from qlora_run.planner.cost.rungs import costs_with


def estimate_memory(
    model: ModelFacts,
    targets: Sequence[LinearShape],
    recipe: Recipe,
    execution: Execution,
    tokens: int,
    budget_bytes: int | None = None,
    *,
    report: HardwareReport | None = None,
    calibration: Calibration | None = None,
    accumulating: bool = True,
) -> MemoryEstimate:
    """The predicted peak of a plan whose largest micro-batch has ``tokens`` tokens, all of them supervised.

    Device memory as the driver sees it on a card, main memory on CPU. ``targets`` are the layers with an adapter;
    ``accumulating`` where a step may have several micro-batches.
    """
    costs = costs_of(model, targets, recipe, execution, report, calibration)
    return peak(costs, tokens, execution.layers_recomputed, budget_bytes, accumulating)


def costs_of(
    model: ModelFacts,
    targets: Sequence[LinearShape],
    recipe: Recipe,
    execution: Execution,
    report: HardwareReport | None = None,
    calibration: Calibration | None = None,
) -> Costs:
    """The coefficients of the peak for a plan's settings; without ``report``, for a card of which nothing is known."""
    inputs = CostInputs.of(recipe, execution, report.torch_version if report else None)
    gpu = next(iter(report.cards(execution.devices)), None) if report is not None else None
    measured = calibration.of(Kernels.of(execution)) if calibration is not None else None
    costs = memory_costs(model, targets, inputs, cuda_overhead_of(gpu, inputs, measured))
    return costs_with(costs, values_of(execution))
