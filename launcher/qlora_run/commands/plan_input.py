"""From a parsed command to what a plan is made for; the same for every command that plans."""

from pathlib import Path
from typing import TYPE_CHECKING

from qlora_profiles.catalogue import load_profile
from qlora_profiles.recipes import load_recipe
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
        load_profile(profile) if profile else None,
        Path.cwd(),
        recipe=load_recipe(recipe) if recipe else None,
    )
    return PlanInput(
        request=request,
        machine=command.options.get("as"),
        only_planning=only_planning,
    )
