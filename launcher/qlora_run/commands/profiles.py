"""``profiles``: the catalogue, one profile whole, and keeping a plan as one."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from qlora_profiles.catalogue import load_profile, profile_names, save_profile
from qlora_profiles.own_files import own_names
from qlora_profiles.plan import Profile, RunPlan
from qlora_run.cli.commands import Command
from qlora_run.commands.catalogue import Catalogue


def run(command: Command) -> int:
    """List the profiles, show one, or save one. Raises UserError as ``Catalogue.run``."""
    return PROFILES.run(command)


def _whole(profile: Profile) -> str:
    import yaml

    return str(yaml.safe_dump(msgspec.to_builtins(profile), sort_keys=False, allow_unicode=True)).rstrip("\n")


def _lines(profiles: Iterable[Profile]) -> Iterator[str]:
    width = max(map(len, (*profile_names(), *own_names("profile"))))
    return (f"{profile.name:<{width}}  {profile.about}" for profile in profiles)


def _keep(plan: RunPlan, name: str, replace: bool) -> Path:
    from qlora_run.runs.profile_of import profile_of

    return save_profile(profile_of(plan, name), replace=replace)


PROFILES = Catalogue(
    kind="profile",
    names=profile_names,
    load=load_profile,
    whole=_whole,
    lines=_lines,
    keep=_keep,
    uses="--profile {} --data FILE",
    more="",
)
