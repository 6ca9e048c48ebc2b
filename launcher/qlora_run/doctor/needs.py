"""What the planned model takes beside the card's memory: disk to download and to write, main memory to load."""

from dataclasses import dataclass

from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner.cost.weights import adapter_params
from qlora_run.planner.rules.disk import written_bytes

PROCESS_BYTES = 3 * GIB
"""Main memory of a training process with its libraries, before any weights; set by hand."""
LARGEST_SHARD_BYTES = 5 * GIB
"""Checkpoints are mostly cut into files of at most so much; one passes through main memory at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model takes, in bytes; ``commit_bytes`` is what Windows must promise, every mapped weight file whole."""

    download_bytes: int
    written_bytes: int
    load_bytes: int
    commit_bytes: int
    merge_bytes: int


def needs_of(plan: RunPlan) -> Needs:
    """What a plan's model takes, by the same numbers that the plan was made from."""
    model, recipe = plan.model, plan.recipe_values()
    weights = model.file_bytes or 2 * model.params
    targets = tuple(discover_targets(model, recipe.target_modules))
    trained = model.params if recipe.method == "full" else adapter_params(model, targets, recipe.lora_r)
    values = {name: r.value for scope in (plan.recipe, plan.execution, plan.run) for name, r in scope.items()}
    return Needs(
        download_bytes=weights,
        written_bytes=written_bytes(model, trained, values.__getitem__),
        load_bytes=PROCESS_BYTES + min(weights, LARGEST_SHARD_BYTES),
        commit_bytes=PROCESS_BYTES + weights,
        merge_bytes=PROCESS_BYTES + 2 * model.params,
    )
