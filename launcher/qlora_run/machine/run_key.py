"""The same run again: what tells it among the measurements, and what is searched of it."""

from collections.abc import Iterable
from typing import Any

from qlora_core.execution.rungs import SEARCHED
from qlora_profiles.machine_key import digest
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution, values_of


def run_key(plan: RunPlan, execution: Execution) -> str:
    """Identity of a run in the cache of measurements: all that decides what it holds and takes, but for what is
    searched, and for the budget, which is a little different at each start."""
    left_out = (*SEARCHED, "vram_budget_bytes")
    return digest(
        plan.recipe_digest(), {name: value for name, value in values_of(execution).items() if name not in left_out}
    )


def limits_of(execution: Execution, names: Iterable[str] = SEARCHED) -> dict[str, Any]:
    """What is searched of an execution, or other settings of it, by name."""
    return {name: getattr(execution, name) for name in names}
