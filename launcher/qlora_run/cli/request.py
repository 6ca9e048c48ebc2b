"""Profile, recipe, config file and command line, merged into one ``Request``, here and nowhere else: later ones win."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from qlora_profiles.alias import shown
from qlora_profiles.aliases import find
from qlora_profiles.plan import Given, Profile, Request, Written
from qlora_profiles.recipe_file import NamedRecipe
from qlora_profiles.registry import settings
from qlora_profiles.settings import READS_DATA
from qlora_run.cli.commands import Command
from qlora_run.cli.level import Levels
from qlora_run.cli.names import canonical

if TYPE_CHECKING:
    from qlora_run.cli.config import ConfigFile

FOUND_NAME = "qlora-run.yaml"
"""The config file that is read when none is named and it lies in the working folder."""

TRUST = "trust_remote_code"

OF_ITS_MODEL = ("local_dir", "revision", "chat_template")
OF_ITS_DATA = ("max_samples", "sample", "skip_bad_rows", *READS_DATA)
"""What a recipe says of its own model or data, and of no other one."""

READS_FOUND_CONFIG = ("train", "doctor", "plan", "data")
"""Commands that read ``qlora-run.yaml`` of the working folder without being told."""


def config_of(command: Command, cwd: Path) -> "ConfigFile | None":
    """The config file that counts: the one named by ``--config``, else ``qlora-run.yaml`` in ``cwd``.

    Raises:
        UserError: it cannot be read, or has an unknown or repeated key.
    """
    named = command.options.get("config")
    found = command.name in READS_FOUND_CONFIG and (cwd / FOUND_NAME).is_file()
    if not named and not found:
        return None
    from qlora_run.cli.config import load_config

    return load_config(cwd / (named or FOUND_NAME), named or FOUND_NAME)


def with_config_options(command: Command, cwd: Path) -> Command:
    """``command`` with the options that its config file sets (``profile``, ``recipe``) and it did not say itself.

    Raises:
        UserError: as :func:`config_of`.
    """
    config = config_of(command, cwd)
    added = {k: v for k, v in (config.options if config else {}).items() if k not in command.given_options}
    known = {name: value for name, value in added.items() if name in command.options}
    return msgspec.structs.replace(
        command, options=command.options | known, given_options=(*command.given_options, *known)
    )


def build_request(
    command: Command, profile: Profile | None, cwd: Path, *, recipe: NamedRecipe | None = None
) -> Request:
    """Everything given, each value typed and with its source; foreign names are explained in ``notes``.

    Raises:
        UserError: a value that a setting cannot have, or two names of one level that contradict each other.
    """
    config = config_of(command, cwd)
    levels = Levels()
    levels.read(_of_profile(profile), "profile")
    levels.read(_of_recipe(recipe), "recipe")
    levels.read(config.written if config else (), "config")
    levels.read(_of_command_line(command), "cli")
    given, untold = _typed_trust(levels.given, bool(command.options.get("config")))
    given, others = _of_its_own(given, recipe)
    found = [f"settings are read from {FOUND_NAME} in this folder"] if config and config.name == FOUND_NAME else []
    told = (*found, *levels.notes, *untold, *others, *(each.note for each in given.values() if each.note))
    name = recipe.name if recipe else None
    return Request(given=given, profile=profile, recipe_name=name, notes=tuple(dict.fromkeys(told)))


def _typed_trust(given: dict[str, Given], config_named: bool) -> tuple[dict[str, Given], list[str]]:
    """``given`` without a trust in a model's own code that nobody typed, and a note about it.

    A folder may be received, and with it what lies there: only the command line trusts, or the file that it names.
    """
    trust = given.get(TRUST)
    if trust is None or not trust.value or trust.source == "cli" or (trust.source == "config" and config_named):
        return given, []
    where = trust.written.place or f"the {trust.source}"
    note = f"{where}: {TRUST} sets nothing there; where a model needs it, type --trust-remote-code"
    return {name: each for name, each in given.items() if name != TRUST}, [note]


def _of_profile(profile: Profile | None) -> list[Written]:
    if profile is None:
        return []
    place = f"profile {profile.name}"
    return [Written(name=name, raw=raw, label=name, place=place) for name, raw in profile.settings.items()]


def _of_recipe(recipe: NamedRecipe | None) -> list[Written]:
    if recipe is None:
        return []
    place = f"recipe {recipe.name}"
    return [Written(name=name, raw=raw, label=name, place=place) for name, raw in recipe.settings.items()]


def _of_its_own(given: dict[str, Given], recipe: NamedRecipe | None) -> tuple[dict[str, Given], list[str]]:
    """``given`` without what a recipe says of its own model or data, where another one is named; and notes of it."""
    if recipe is None:
        return given, []
    notes = []
    for about, names in {"model": OF_ITS_MODEL, "data": OF_ITS_DATA}.items():
        if about not in recipe.settings or given[about].source == "recipe":
            continue
        dropped = {name: given[name].value for name in names if name in given and given[name].source == "recipe"}
        given = {name: each for name, each in given.items() if name not in dropped}
        said = ", ".join(f"{name} {shown(value)}" for name, value in dropped.items() if value)
        notes += [f"{said} of recipe {recipe.name} is for its own {about}, and set aside"] if said else []
    return given, notes


def _of_command_line(command: Command) -> list[Written]:
    """The settings as written; of an option given twice the last counts, unless it is a list."""
    all_of_them = [Written(name=canonical(label), raw=raw, label=label) for label, raw in command.raw_settings]
    last = {written.name: written for written in all_of_them}
    return [written for written in all_of_them if _is_list(written.name) or written is last[written.name]]


def _is_list(name: str) -> bool:
    row = find(name)
    setting = settings().get(row.to[0] if row and row.to else name)
    return setting is not None and setting.kind is tuple
