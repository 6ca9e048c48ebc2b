"""How often a run writes down what it learned."""

from qlora_profiles.plan import Resolved
from qlora_profiles.registry import lookup
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.cost.speed import total_steps

CHECKPOINTS = 10
"""At least so many in a run, however short: a machine that stops must not cost most of it."""


def save_steps(s: PlanningContext) -> Resolved:
    """A tenth of the run, or the usual number of steps where that is sooner."""
    usual: int = lookup("save_steps").default
    steps = total_steps(s.data.train_rows, s.value("examples_per_step"), s.value("epochs"), s.value("max_steps"))
    if steps >= CHECKPOINTS * usual:
        return Resolved(usual, "default", "little is lost when the machine stops")
    return Resolved(max(1, steps // CHECKPOINTS), "data", f"a tenth of {steps:,} steps: little is lost when it stops")
