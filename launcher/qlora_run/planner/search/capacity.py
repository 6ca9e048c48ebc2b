"""What a plan's machine could do beyond the plan."""

from msgspec.structs import replace

from qlora_core.execution.rungs import FILLERS, SWITCHES
from qlora_profiles.plan import RunPlan
from qlora_run.machine.measurements.records import Calibration
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner.cost.estimate import costs_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import longest_that_fits
from qlora_run.planner.cost.offloaded import most_offloaded_tokens
from qlora_run.planner.rules.machine import offload_bytes

WITHOUT_LIMIT = 2**20


def largest_length(plan: RunPlan, calibration: Calibration | None = None) -> int | None:
    """The longest example (tokens, a multiple of 64) that would fit with the plan's recipe otherwise unchanged.

    Every layer recomputes then, what that needs waits in main memory and cheap results are made again where they can.
    At most what the model reads; ``None`` where the memory is not known, 0 where nothing fits.
    """
    if plan.memory.budget_bytes is None:
        return None
    most = plan.model.max_positions or WITHOUT_LIMIT
    room = offload_bytes(plan.report) if plan.execution_values().device == "cuda" else None
    offloaded = _longest(plan, calibration, most, True, room) if room else 0
    return max(_longest(plan, calibration, most, False, None), offloaded)


def _longest(plan: RunPlan, calibration: Calibration | None, most: int, offload: bool, room: int | None) -> int:
    recipe, execution = plan.recipe_values(), plan.execution_values()
    inputs = CostInputs.of(recipe, execution)
    smallest = {name: how.smallest and inputs.can(name) for name, how in (FILLERS | SWITCHES).items()}
    execution = replace(execution, **smallest | {"offload_activations": offload})
    targets = discover_targets(plan.model, recipe.target_modules)
    costs = costs_of(plan.model, targets, recipe, execution, plan.report, calibration)
    if room is not None:
        most = min(most, most_offloaded_tokens(costs, room))
    return longest_that_fits(costs, plan.memory.budget_bytes, most)
