"""``profiles``: the catalogue, and one profile whole."""

import msgspec

from qlora_profiles.catalogue import load_profile, profile_names
from qlora_profiles.plan import Profile
from qlora_run.cli.commands import Command
from qlora_run.commands.say import say_json


def run(command: Command) -> int:
    """List the profiles, or show one."""
    name, as_json = command.options.get("show"), command.options["json"]
    found = [load_profile(name)] if name else [load_profile(n) for n in profile_names()]
    if as_json:
        say_json(found[0] if name else found)
    elif name:
        _show(found[0])
    else:
        _list(found)
    return 0


def _list(profiles: list[Profile]) -> None:
    width = max(len(p.name) for p in profiles)
    print("\n".join(f"{p.name:<{width}}  {p.about}" for p in profiles))
    print("\nqlora-run profiles show NAME     qlora-run --profile NAME --data FILE")


def _show(profile: Profile) -> None:
    import yaml

    print(yaml.safe_dump(msgspec.to_builtins(profile), sort_keys=False, allow_unicode=True), end="")
