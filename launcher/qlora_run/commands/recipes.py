"""``recipes``: the catalogue of what can be learned, one recipe whole, and keeping a plan as one."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.own_files import own_folder, own_names
from qlora_profiles.recipe_file import NamedRecipe
from qlora_profiles.recipes import load_recipe, recipe_names, recipe_text, save_recipe
from qlora_profiles.visible import visible
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import print_json


def run(command: Command) -> int:
    """List the recipes, show one as its file stands, or save one.

    Raises:
        UserError: no such recipe, none to save from, or one of this name is there and ``--yes`` was not given.
    """
    options = command.options
    if options["save"]:
        return _save(options["save"], options["from"], replace=options["yes"])
    name, as_json = options.get("show"), options["json"]
    if name:
        recipe = load_recipe(name)
        if as_json:
            print_json(recipe)
        else:
            print(visible(recipe_text(name).rstrip("\n")))
            print(f"\nNext: qlora-run --recipe {name}")
        return 0
    readable, problems = _all()
    if as_json:
        print_json(readable)
    else:
        _list(readable, problems)
    return 0


def _all() -> tuple[list[NamedRecipe], list[str]]:
    """Every recipe that can be read, and what is wrong with the others."""
    readable, problems = [], []
    for name in (*recipe_names(), *own_names("recipe")):
        try:
            readable.append(load_recipe(name))
        except UserError as error:
            problems.append(str(error))
    return readable, problems


def _list(recipes: list[NamedRecipe], problems: list[str]) -> None:
    shipped = [recipe for recipe in recipes if recipe.name in recipe_names()]
    own = [recipe for recipe in recipes if recipe not in shipped]
    print("\n".join(_lines(shipped)))
    if own or problems:
        print(f"\nyours, in {own_folder('recipe')}")
        print(visible("\n".join([*_lines(own), *problems])))
    print("\nqlora-run recipes show NAME     qlora-run --recipe NAME [--profile NAME]")
    print("qlora-run recipes save NAME --from FOLDER-OF-A-RUN")


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


def _save(name: str, source: str | None, *, replace: bool) -> int:
    """Keep what the plan of a run learns as a recipe. Raises UserError where no plan was named."""
    from qlora_run.runs.recipe_of import recipe_of
    from qlora_run.runs.replay import plan_of

    if source is None:
        raise UserError("recipes save needs a plan", f"qlora-run recipes save {name} --from FOLDER-OF-A-RUN")
    path = save_recipe(recipe_of(plan_of(Path(source))[0], name), replace=replace)
    print(visible(f"saved: {path}") + f"\nNext: qlora-run --recipe {name}")
    return 0
