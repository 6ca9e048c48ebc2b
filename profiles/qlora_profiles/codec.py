"""Versioned JSON for the contract's values: exact round trips, unknown keys refused with a suggestion."""

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from qlora_profiles.durable import write_whole
from qlora_profiles.errors import UserError
from qlora_profiles.suggest import hint

T = TypeVar("T")


def to_json(value: Any) -> str:
    """JSON text of a contract value, indented and in UTF-8 as it stands; field order is the schema's."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode("utf-8") + "\n"


def save(value: Any, path: Path) -> None:
    """Write ``value`` whole or not at all, to last: a reader never sees half a file. Raises OSError."""
    write_whole(path, to_json(value))


def load(path: Path, kind: type[T]) -> T:
    """Read a contract value.

    Raises:
        UserError: no such file, not JSON, or not the schema (with the nearest known key).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8, so not one of our files") from error
    return from_json(text, kind, str(path))


def from_json(text: str, kind: type[T], where: str) -> T:
    """Decode JSON text; ``where`` names the source in errors. Raises UserError."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {explain(error, kind)}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from error


def explain(error: msgspec.ValidationError, kind: type) -> str:
    """msgspec's message, with the nearest field name where a key is unknown."""
    text = str(error)
    unknown = re.search(r"unknown field `([^`]+)`", text)
    if not unknown:
        return text
    return f"unknown key {unknown[1]}" + hint(unknown[1], _field_names(kind))


def _field_names(kind: type, seen: frozenset[type] = frozenset()) -> list[str]:
    """Every field name of a struct and of the structs inside it."""
    names: list[str] = []
    for entry in msgspec.structs.fields(kind):
        names.append(entry.encode_name)
        for inner in _structs_in(entry.type):
            if inner not in seen:
                names += _field_names(inner, seen | {kind, inner})
    return names


def _structs_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return [annotation]
    return [struct for part in getattr(annotation, "__args__", ()) for struct in _structs_in(part)]
