"""From a parsed command to what a plan is made for; the same for every command that plans."""

from pathlib import Path
from typing import TYPE_CHECKING

from qlora_profiles.catalogue import load_profile
from qlora_profiles.errors import UserError
from qlora_profiles.own_files import own_names
from qlora_profiles.plan import Profile
from qlora_profiles.recipes import load_recipe, recipe_names
from qlora_run.cli.commands import Command
from qlora_run.cli.request import build_request, with_config_options

if TYPE_CHECKING:
    from qlora_run.planner.make_plan import PlanInput


def plan_input(command: Command, only_planning: bool = False) -> "PlanInput":
    """Profile, recipe, config file and command line as one input.

    Raises:
        UserError: no such profile, recipe or config file, an unknown key, or a value that a setting cannot have.
    """
    from qlora_run.planner.make_plan import PlanInput

    command = with_config_options(command, Path.cwd())
    profile, recipe = command.options.get("profile"), command.options.get("recipe")
    request = build_request(
        command,
        _profile(profile) if profile else None,
        Path.cwd(),
        recipe=load_recipe(recipe) if recipe else None,
    )
    return PlanInput(
        request=request,
        machine=command.options.get("as"),
        only_planning=only_planning,
    )


def _profile(name: str) -> Profile:
    """The profile of this name. Raises UserError where there is none, or it is a recipe's."""
    if name in recipe_names() and name not in own_names("profile"):
        raise UserError(f"{name} is a recipe, no profile", f"--recipe {name}")
    return load_profile(name)
