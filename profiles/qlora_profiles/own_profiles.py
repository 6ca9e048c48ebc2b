"""A person's own profiles: YAML files in the user's settings folder, beside those that come with the program."""

import re
from pathlib import Path

from qlora_profiles.durable import write_whole
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.places import config_folder
from qlora_profiles.plan import Profile
from qlora_profiles.profile_file import Loader, read_profile, write_profile
from qlora_profiles.small_file import read_small

FOLDER = "profiles"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def own_folder() -> Path:
    """Where they lie: under ``QLORA_RUN_CONFIG``, else in the user's settings folder."""
    return config_folder(FOLDER)


def own_names() -> tuple[str, ...]:
    """They, by name; none where the folder is not there or cannot be read."""
    try:
        return tuple(sorted(path.stem for path in own_folder().glob("*.yaml")))
    except OSError:
        return ()


def load_own(name: str, load: Loader) -> Profile:
    """One of them; ``load`` finds the profile that it extends. Raises UserError as ``read_profile`` does."""
    path = own_folder() / f"{name}.yaml"
    try:
        text = read_small(path, str(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"profile {name}: {path} cannot be read ({error})", f"mend or delete {path}") from error
    return read_profile(text, name, load)


def save_own(profile: Profile, *, replace: bool) -> Path:
    """Write a profile whole or not at all; returns its file.

    Raises:
        UserError: the name cannot be a file's on every system, or is taken and ``replace`` is false.
        EnvironmentProblem: the folder cannot be written.
    """
    if not NAME.fullmatch(profile.name) or profile.name.endswith("."):
        raise UserError(f"profile {profile.name}: a name is of letters, digits, . _ and -", "another name")
    path = own_folder() / f"{profile.name}.yaml"
    if path.exists() and not replace:
        raise UserError(f"profile {profile.name}: there is one already ({path})", "another name, or --yes replaces it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write_profile(profile))
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror or error}", "QLORA_RUN_CONFIG=FOLDER") from error
    return path
