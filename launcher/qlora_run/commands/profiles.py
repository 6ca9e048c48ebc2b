"""``profiles``: the catalogue, one profile whole, and keeping a plan as one."""

from pathlib import Path

import msgspec

from qlora_profiles.catalogue import load_profile, profile_names, save_profile
from qlora_profiles.errors import UserError
from qlora_profiles.own_files import own_folder, own_names
from qlora_profiles.plan import Profile
from qlora_profiles.visible import visible
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import print_json


def run(command: Command) -> int:
    """List the profiles, show one, or save one.

    Raises:
        UserError: no such profile, none to save from, or one of this name is there and ``--yes`` was not given.
    """
    options = command.options
    if options["save"]:
        return _save(options["save"], options["from"], replace=options["yes"])
    name, as_json = options.get("show"), options["json"]
    if name:
        return _show(load_profile(name), as_json)
    readable, problems = _all()
    if as_json:
        print_json(readable)
    else:
        _list(readable, problems)
    return 0


def _all() -> tuple[list[Profile], list[str]]:
    """Every profile that can be read, and what is wrong with the others: one mistake must not hide the rest."""
    readable, problems = [], []
    for name in (*profile_names(), *own_names("profile")):
        try:
            readable.append(load_profile(name))
        except UserError as error:
            problems.append(str(error))
    return readable, problems


def _list(profiles: list[Profile], problems: list[str]) -> None:
    width = max(len(p.name) for p in profiles)
    shipped = [p for p in profiles if p.name in profile_names()]
    own = [p for p in profiles if p not in shipped]
    print("\n".join(f"{p.name:<{width}}  {p.about}" for p in shipped))
    if own or problems:
        print(f"\nyours, in {own_folder('profile')}")
        print(visible("\n".join([*(f"{p.name:<{width}}  {p.about}" for p in own), *problems])))
    print("\nqlora-run profiles show NAME     qlora-run --profile NAME --data FILE")
    print("qlora-run profiles save NAME --from FOLDER-OF-A-RUN")


def _show(profile: Profile, as_json: bool) -> int:
    import yaml

    if as_json:
        print_json(profile)
    else:
        print(yaml.safe_dump(msgspec.to_builtins(profile), sort_keys=False, allow_unicode=True), end="")
    return 0


def _save(name: str, source: str | None, *, replace: bool) -> int:
    """Keep the plan of a run as a profile. Raises UserError where no plan was named."""
    from qlora_run.runs.profile_of import profile_of
    from qlora_run.runs.replay import plan_of

    if source is None:
        raise UserError("profiles save needs a plan", f"qlora-run profiles save {name} --from FOLDER-OF-A-RUN")
    path = save_profile(profile_of(plan_of(Path(source))[0], name), replace=replace)
    print(visible(f"saved: {path}") + f"\nNext: qlora-run --profile {name} --data FILE")
    return 0
