"""A profile as it is written: YAML with ``about``, ``machine`` and ``settings``, or ``extends`` and what differs."""

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct

from qlora_profiles.codec import explain
from qlora_profiles.errors import UserError
from qlora_profiles.plan import MachineClass, Profile
from qlora_profiles.registry import lookup, parse
from qlora_profiles.yaml_text import read_yaml

Loader = Callable[[str], Profile]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile that stands alone: its name is the file's."""

    about: str
    machine: MachineClass
    settings: dict[str, Any]


class _Extension(Struct, frozen=True, forbid_unknown_fields=True):
    """A profile that changes another one: its own settings win, everything else is the other's."""

    extends: str
    about: str | None = None
    machine: MachineClass | None = None
    settings: dict[str, Any] = {}


def read_profile(text: str, name: str, load: Loader | None = None) -> Profile:
    """A profile from its YAML; ``load`` finds the one that it extends.

    Raises:
        UserError: not YAML, an unknown key or setting, or a value that its setting does not allow.
    """
    found = read_yaml(text, f"profile {name}")
    kind: type[_File | _Extension] = _Extension if isinstance(found, dict) and "extends" in found and load else _File
    try:
        written: _File | _Extension = msgspec.convert(found, kind)
        settings = {key: parse(lookup(key), raw) for key, raw in written.settings.items()}
    except msgspec.ValidationError as error:
        raise UserError(f"profile {name}: {explain(error, kind)}") from error
    except UserError as error:
        raise UserError(f"profile {name}: {error.message}", error.fix) from error
    if isinstance(written, _File):
        return Profile(name=name, about=written.about, machine=written.machine, settings=settings)
    assert load is not None
    base = load(written.extends)
    return Profile(
        name=name,
        about=written.about or f"as {base.name}, with {len(settings)} settings of its own",
        machine=written.machine or base.machine,
        settings=base.settings | settings,
    )


def write_profile(profile: Profile) -> str:
    """A profile as YAML that ``read_profile`` reads back."""
    import yaml

    machine = {key: value for key, value in msgspec.to_builtins(profile.machine).items() if value not in (None, False)}
    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in profile.settings.items()}
    whole = {"about": profile.about, "machine": machine, "settings": settings}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)
