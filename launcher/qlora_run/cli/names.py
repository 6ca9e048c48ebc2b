"""Which options a command knows, in every spelling; and what is said to one that it does not know."""

from collections.abc import Iterable
from typing import Literal

from qlora_profiles.alias import Alias
from qlora_profiles.aliases import aliases
from qlora_profiles.errors import UserError
from qlora_profiles.registry import Setting, settings
from qlora_profiles.suggest import did_you_mean, unseen
from qlora_run.cli.commands import OPTIONS, SHORT_SETTINGS, CommandSpec, options_of

Takes = Literal["flag", "either", "value"]


def canonical(written: str) -> str:
    """``--max-steps`` and ``max_steps`` are one name: ``max_steps``."""
    return written.lstrip("-").replace("-", "_")


def spellings(name: str) -> list[str]:
    """The option with dashes, then with underscores."""
    return list(dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")))


def short_forms(spec: CommandSpec) -> dict[str, str]:
    """Name -> one-letter option."""
    own = {name: option.short for name, option in options_of(spec.name).items() if option.short}
    return own | (SHORT_SETTINGS if spec.scopes else {})


def settings_of(spec: CommandSpec) -> dict[str, Setting]:
    """The settings that a command takes."""
    return {name: setting for name, setting in settings().items() if setting.scope in spec.scopes}


def aliases_of(spec: CommandSpec) -> list[Alias]:
    """The foreign names that a command takes: those of its settings and options, and those that are left out."""
    known = settings_of(spec).keys() | options_of(spec.name).keys()
    if spec.where == "train" and not spec.scopes:
        return []
    rows = (row for row in aliases(spec.where).values() if row.section is None)
    return [row for row in rows if not row.to or any(target in known for target in row.to)]


def options_taken(spec: CommandSpec) -> dict[str, Takes]:
    """Every option of a command by name, settings and foreign names too, and whether it takes a value."""
    found: dict[str, Takes] = {name: _takes(option.flag) for name, option in options_of(spec.name).items()}
    found |= {name: _takes(setting.kind is bool) for name, setting in settings_of(spec).items()}
    return found | {row.name: row.takes for row in aliases_of(spec)}


def _takes(flag: bool) -> Takes:
    return "flag" if flag else "value"


def unknown_option(spec: CommandSpec, written: str) -> UserError:
    """The error for an option that ``spec`` does not know: where it belongs, or the nearest that it knows."""
    name = canonical(written)
    elsewhere = [command for option in OPTIONS if option.name == name for command in option.commands]
    trains = name in settings() or (name, None) in aliases("train")
    if trains and spec.name in ("resume", "replay"):
        message = f"{spec.name} keeps what is learned, so {written} cannot be given"
        return UserError(message, "a new run: qlora-run --auto --output NEW_FOLDER ...")
    if trains or elsewhere:
        owner = f"qlora-run {elsewhere[0]}" if elsewhere else "training"
        return UserError(f"{spec.name} takes no {written}; it belongs to {owner}", help_for(spec))
    known = (spellings(option)[0] for option in options_taken(spec))
    return UserError(f"unknown option {written}{nearest(written, known)}", help_for(spec))


def nearest(written: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` with the one name that is nearest, or an empty string."""
    near = did_you_mean(written, known, 1)
    return unseen(written) + (f"; did you mean {near[0]}?" if near else "")


def help_for(spec: CommandSpec) -> str:
    """The command that shows what ``spec`` takes."""
    return "qlora-run help SETTINGS" if spec.name == "train" else f"qlora-run help {spec.name}"
