"""A prepared recipe as it is written: YAML of what is learned, and what its source says that is not kept here."""

from typing import Any

import msgspec
from msgspec import Struct

from qlora_profiles.alias import meaning
from qlora_profiles.alias_parts import PARTS
from qlora_profiles.aliases import find
from qlora_profiles.codec import explain
from qlora_profiles.errors import UserError
from qlora_profiles.registry import lookup, parse, settings
from qlora_profiles.yaml_text import read_yaml

PART_OF = "examples_per_step"
"""The setting that a recipe may also give by its parts, so that a command line may change one of them."""
TRUST = "trust_remote_code"


class NamedRecipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named set of what is learned.

    Attributes:
        about: in one line of English; ``about_zh`` the same in Chinese, ``source`` what the values are taken from.
        settings: settings of the recipe and the run, typed; batch and accumulation under their names elsewhere.
        execution: what the source says of the execution, as our settings: it is worked out for the machine instead.
        left_out: what the source says that has no place here, and why.
    """

    name: str
    about: str
    about_zh: str = ""
    source: str = ""
    settings: dict[str, Any]
    execution: dict[str, Any] = {}
    left_out: dict[str, str] = {}


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """As ``NamedRecipe``: its name is the file's."""

    about: str
    settings: dict[str, Any]
    about_zh: str = ""
    source: str = ""
    execution: dict[str, Any] = {}
    left_out: dict[str, str] = {}


def read_recipe(text: str, name: str) -> NamedRecipe:
    """A recipe from its YAML.

    Raises:
        UserError: not YAML, an unknown key or setting, one of the execution, or a value that its setting does not
            allow.
    """
    found = read_yaml(text, f"recipe {name}")
    try:
        written = msgspec.convert(found, _File)
        learned = {key: _learned(key, raw) for key, raw in written.settings.items()}
        _check_once(learned)
        computed = {key: parse(lookup(key), raw) for key, raw in written.execution.items()}
    except msgspec.ValidationError as error:
        raise UserError(f"recipe {name}: {explain(error, _File)}") from error
    except UserError as error:
        raise UserError(f"recipe {name}: {error.message}", error.fix) from error
    values = {key: getattr(written, key) for key in ("about", "about_zh", "source", "left_out")}
    return NamedRecipe(name=name, settings=learned, execution=computed, **values)


def _learned(key: str, raw: Any) -> Any:
    """The typed value of a key of ``settings``. Raises UserError for what does not belong there."""
    row = find(key)
    if row and row.part and PARTS[row.part] == PART_OF:
        try:
            return meaning(row, raw)[row.part]
        except UserError as error:
            raise UserError(f"{key}: {error.message}", error.fix) from error
    setting = lookup(key)
    if setting.scope == "execution":
        raise UserError(f"{key} says how a machine computes, not what is learned", f"a profile with {key}")
    if setting.name == TRUST:
        raise UserError(f"{key}: nobody but you trusts a model's own code", "--trust-remote-code on the command line")
    return parse(setting, raw)


def _check_once(learned: dict[str, Any]) -> None:
    parts = [key for key in learned if key not in settings()]
    if parts and PART_OF in learned:
        raise UserError(f"{PART_OF} contradicts {' and '.join(parts)}", "remove one of them")


def write_recipe(recipe: NamedRecipe) -> str:
    """A recipe as YAML that ``read_recipe`` reads back."""
    import yaml

    whole = msgspec.to_builtins(recipe)
    kept = {key: value for key, value in whole.items() if key != "name" and value not in ("", {})}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)
