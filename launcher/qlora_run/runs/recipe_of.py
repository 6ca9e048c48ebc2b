"""A plan as a recipe: what is learned in it, on whatever machine."""

from typing import Any

from qlora_profiles.plan import PERSON, RunPlan
from qlora_profiles.recipe_file import NamedRecipe
from qlora_profiles.registry import settings

OF_ONE_START = ("output", "resume", "overwrite", "trust_remote_code", "cache", "allow_recipe_change")
"""Run settings about one start of a run or one machine."""


def recipe_of(plan: RunPlan, name: str) -> NamedRecipe:
    """The recipe that makes the plan's learning again: every value that is no default, and how the run was decided."""
    learned = plan.recipe_values()
    about = f"your own: {plan.model.name} by {learned.method}, on {', '.join(learned.data)}"
    return NamedRecipe(name=name, about=about, settings=_settings(plan))


def _settings(plan: RunPlan) -> dict[str, Any]:
    kept = {}
    for setting in settings().values():
        if setting.scope == "execution" or setting.name in OF_ONE_START:
            continue
        resolved = getattr(plan, setting.scope)[setting.name]
        counts = setting.scope == "recipe" or resolved.source in PERSON
        if counts and resolved.value != setting.default:
            kept[setting.name] = resolved.value
    return kept
