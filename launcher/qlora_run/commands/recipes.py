"""``recipes``: the catalogue of what can be learned, one recipe whole, and keeping a plan as one."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from qlora_profiles.plan import RunPlan
from qlora_profiles.recipe_file import NamedRecipe
from qlora_profiles.recipes import load_recipe, recipe_names, recipe_text, save_recipe
from qlora_profiles.visible import visible
from qlora_run.cli.commands import Command
from qlora_run.commands.catalogue import Catalogue


def run(command: Command) -> int:
    """List the recipes, show one as its file stands, or save one. Raises UserError as ``Catalogue.run``."""
    return RECIPES.run(command)


def _whole(recipe: NamedRecipe) -> str:
    return visible(recipe_text(recipe.name).rstrip("\n")) + f"\n\nNext: qlora-run --recipe {recipe.name}"


def _lines(recipes: Iterable[NamedRecipe]) -> Iterator[str]:
    """Each with what it is, in Chinese too where standard output can say it."""
    for recipe in recipes:
        yield recipe.name
        yield f"  {recipe.about}"
        if recipe.about_zh and _can_say(recipe.about_zh):
            yield f"  {recipe.about_zh}"


def _can_say(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _keep(plan: RunPlan, name: str, replace: bool) -> Path:
    from qlora_run.runs.recipe_of import recipe_of

    return save_recipe(recipe_of(plan, name), replace=replace)


RECIPES = Catalogue(
    kind="recipe",
    names=recipe_names,
    load=load_recipe,
    whole=_whole,
    lines=_lines,
    keep=_keep,
    uses="--recipe {}",
    more=" [--profile NAME]",
)
