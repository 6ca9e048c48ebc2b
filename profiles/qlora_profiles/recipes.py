"""The catalogue of prepared recipes: those that come with the program, and a person's own."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from qlora_profiles.catalogue import profile_names
from qlora_profiles.errors import UserError
from qlora_profiles.own_files import own_names, read_own, save_own
from qlora_profiles.recipe_file import NamedRecipe, read_recipe, write_recipe
from qlora_profiles.suggest import hint

_FOLDER = files("qlora_profiles") / "recipes"


@cache
def recipe_names() -> tuple[str, ...]:
    """The shipped recipes by name, in the order of the alphabet."""
    return tuple(sorted(e.name.removesuffix(".yaml") for e in _FOLDER.iterdir() if e.name.endswith(".yaml")))


def load_recipe(name: str) -> NamedRecipe:
    """The recipe called ``name``. Raises UserError as ``recipe_text``, or where its file has a mistake."""
    return read_recipe(recipe_text(name), name)


def recipe_text(name: str) -> str:
    """The file of a recipe, comments and all: one that comes with the program, or a person's own.

    Raises:
        UserError: there is none (names the nearest), or it cannot be read.
    """
    if name in recipe_names():
        return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    own = own_names("recipe")
    if name in own:
        return read_own("recipe", name)
    if name in (*profile_names(), *own_names("profile")):
        raise UserError(f"{name} is a profile, no recipe", f"--profile {name}")
    known = (*recipe_names(), *own)
    raise UserError(f"unknown recipe {name}{hint(name, known)}", f"one of {', '.join(known)}")


def save_recipe(recipe: NamedRecipe, *, replace: bool = False) -> Path:
    """Store a person's recipe. Raises UserError for a name that is shipped, or as ``save_own``."""
    if recipe.name in recipe_names():
        raise UserError(f"recipe {recipe.name}: one that comes with the program is called that", "another name")
    return save_own("recipe", recipe.name, write_recipe(recipe), replace=replace)
