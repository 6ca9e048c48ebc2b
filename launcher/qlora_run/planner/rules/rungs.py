"""Searched settings that need certain kernels: their defaults, and what is wrong with a person's own value."""

from typing import Any

from qlora_core.execution.rungs import FILLERS, SWITCHES, planned
from qlora_profiles.errors import EnvironmentProblem, QloraRunError, UserError
from qlora_profiles.plan import Resolved
from qlora_profiles.registry import flag, lookup
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.cost.inputs import unmet
from qlora_run.planner.rules.defaults import why_default

WITH_NEEDS = tuple(name for name, plan in (SWITCHES | FILLERS).items() if plan.needs)
INSTALLED = ("fused_kernels",)
"""Needs that a package meets."""


def usual(name: str, s: PlanningContext) -> Resolved:
    """Off or none, unless the search finds a use for it."""
    setting = lookup(name)
    return Resolved(setting.default, "default", planned(name).usual or why_default(setting))


def problem(name: str, s: PlanningContext, value: Any) -> QloraRunError | None:
    """A value that asks for what the kernels cannot do."""
    words = unmet(name, s.value, s.given_method or "qlora-4") if value else None
    if words is None:
        return None
    on = value is True
    asked = f"{name}: needs {words}" if on else f"{name} {value}: needs {words}"
    error = EnvironmentProblem if any(need in INSTALLED for need in planned(name).needs) else UserError
    return error(asked, f"{flag(lookup(name))} {'no' if on else 0}")
