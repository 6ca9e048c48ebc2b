"""A person's own profiles and recipes: YAML files in the user's settings folder, beside those that come along."""

import re
from pathlib import Path
from typing import Literal

from qlora_profiles.durable import write_whole
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.places import config_folder
from qlora_profiles.small_file import read_small

Kind = Literal["profile", "recipe"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def own_folder(kind: Kind) -> Path:
    """Where they lie: under ``QLORA_RUN_CONFIG``, else in the user's settings folder."""
    return config_folder(f"{kind}s")


def own_names(kind: Kind) -> tuple[str, ...]:
    """They, by name; none where the folder is not there or cannot be read."""
    try:
        return tuple(sorted(path.stem for path in own_folder(kind).glob("*.yaml")))
    except OSError:
        return ()


def read_own(kind: Kind, name: str) -> str:
    """The text of one of them. Raises UserError where it cannot be read."""
    path = own_folder(kind) / f"{name}.yaml"
    try:
        return read_small(path, str(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{kind} {name}: {path} cannot be read ({error})", f"mend or delete {path}") from error


def save_own(kind: Kind, name: str, text: str, *, replace: bool) -> Path:
    """Write one of them whole or not at all; returns its file.

    Raises:
        UserError: the name cannot be a file's on every system, or is taken and ``replace`` is false.
        EnvironmentProblem: the folder cannot be written.
    """
    if not NAME.fullmatch(name) or name.endswith("."):
        raise UserError(f"{kind} {name}: a name is of letters, digits, . _ and -", "another name")
    path = own_folder(kind) / f"{name}.yaml"
    if path.exists() and not replace:
        raise UserError(f"{kind} {name}: there is one already ({path})", "another name, or --yes replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror or error}", "QLORA_RUN_CONFIG=FOLDER") from error
    return path
