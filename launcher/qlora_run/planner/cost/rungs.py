"""What the rungs cost that are no part of the cost inputs: memory and time of a step, by the setting's value."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qlora_run.planner.cost.memory import Costs
from qlora_run.planner.cost.speed import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class RungCost:
    """How a value other than zero changes the coefficients of the peak, and the work of a step."""

    memory: Callable[[Costs, int], Costs]
    time: Callable[[Work, int], Work]


def _less_dequantizing(work: Work, layers: int) -> Work:
    return replace(work, dequantized_params=work.dequantized_params * (1 - layers / work.num_layers))


RUNG_COSTS = {"layers_dequantized": RungCost(memory=Costs.keeping, time=_less_dequantizing)}
"""By setting. Those that a ``CostInputs`` holds change what is counted there: layers' activations, launches, copies."""


def costs_with(costs: Costs, values: Mapping[str, Any]) -> Costs:
    """The coefficients of the peak with rungs at these values; settings that are no rungs do not count."""
    for name, cost in RUNG_COSTS.items():
        if values.get(name):
            costs = cost.memory(costs, values[name])
    return costs


def work_with(work: Work, values: Mapping[str, Any]) -> Work:
    """The work of a step with rungs at these values."""
    for name, cost in RUNG_COSTS.items():
        if values.get(name):
            work = cost.time(work, values[name])
    return work
