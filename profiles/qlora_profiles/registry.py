"""The settings as a table: one ``Setting`` for each field of the three structs."""

import math
from functools import cache
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct

from qlora_profiles.errors import UserError
from qlora_profiles.given_text import check_text
from qlora_profiles.settings import SCOPES, Doc, Scope
from qlora_profiles.suggest import hint

UNSET_WORDS = ("auto", "none", "null", "")
"""What a person may write for "you decide" where a setting has no such value of its own."""

_BOOLEANS = dict.fromkeys(("yes", "on", "true", "1"), True) | dict.fromkeys(("no", "off", "false", "0"), False)


class Setting(Struct, frozen=True, kw_only=True):
    """One setting: its place, its type as a person reads it, and how to check a value of it."""

    name: str
    scope: Scope
    annotation: Any
    default: Any
    tuned: bool
    doc: Doc

    @property
    def choices(self) -> tuple[str, ...]:
        """The words allowed, or empty when it is not a choice."""
        return next((get_args(p) for p in _parts(self.annotation) if get_origin(p) is Literal), ())

    @property
    def kind(self) -> type:
        """bool, int, float, str or tuple."""
        known = (bool, int, float, tuple)
        return next((k for k in known for p in _parts(self.annotation) if p is k or get_origin(p) is k), str)

    @property
    def optional(self) -> bool:
        """True where "not set" is a value: a tuned setting, or one that may be ``None``."""
        return self.tuned or NoneType in _parts(self.annotation)


@cache
def settings() -> dict[str, Setting]:
    """Every setting by name, in the order of the documentation."""
    return {s.name: s for scope, struct in SCOPES.items() for s in _of_struct(scope, struct)}


def _of_struct(scope: Scope, struct: type[Struct]) -> list[Setting]:
    return [_of_field(scope, entry) for entry in msgspec.structs.fields(struct)]


def _of_field(scope: Scope, entry: msgspec.structs.FieldInfo) -> Setting:
    factory = entry.default_factory
    default = entry.default if factory is NODEFAULT else factory()
    tuned = default is NODEFAULT
    doc = next(m for m in entry.type.__metadata__ if isinstance(m, Doc))
    return Setting(
        name=entry.name, scope=scope, annotation=entry.type, tuned=tuned, doc=doc, default=None if tuned else default
    )


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The plain types inside Annotated and unions."""
    if hasattr(annotation, "__metadata__"):
        return _parts(annotation.__origin__)
    if get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        return tuple(part for arg in get_args(annotation) for part in _parts(arg))
    return (annotation,)


def lookup(name: str) -> Setting:
    """The setting called ``name`` (dashes count as underscores).

    Raises:
        UserError: there is none; names the nearest.
    """
    found = settings().get(name.replace("-", "_"))
    if found is None:
        raise UserError(f"unknown setting {name}{hint(name, settings())}", "qlora-run help SETTINGS")
    return found


def parse(setting: Setting, raw: Any) -> Any:
    """A raw value (text of the command line, or a YAML/JSON value) as the setting's own type.

    ``None`` means "not set": the planner decides.

    Raises:
        UserError: not of the type, or out of range.
    """
    for text in raw if isinstance(raw, list | tuple) else (raw,):
        if isinstance(text, str):
            check_text(setting.name, text)
    word = raw.strip().lower() if isinstance(raw, str) else raw
    if setting.optional and (raw is None or word in UNSET_WORDS) and word not in setting.choices:
        return None
    value = _as_list(setting, raw) if setting.kind is tuple else _as_scalar(setting, raw, word)
    try:
        return msgspec.convert(value, setting.annotation, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{setting.name}: {raw!r} is not allowed; {allowed(setting)}") from error


def _as_scalar(setting: Setting, raw: Any, word: Any) -> Any:
    if setting.choices:
        return word
    if setting.kind is str:
        return str(raw) if isinstance(raw, int | float) and not isinstance(raw, bool) else raw
    if setting.kind is bool:
        return _BOOLEANS.get(word, raw) if isinstance(word, str) else raw
    return _as_number(setting.kind, word)


def _as_number(kind: type, word: Any) -> Any:
    """A finite number; what is none, or endless, is left for the type check to refuse."""
    try:
        number = kind(word) if isinstance(word, str) else word
    except ValueError:
        return word
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _as_list(setting: Setting, raw: Any) -> Any:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return [raw]
    if not isinstance(raw, str):
        return raw
    return [raw] if setting.doc.sentences else [part.strip() for part in raw.split(",") if part.strip()]


def allowed(setting: Setting) -> str:
    """What a value may be, in words: ``"an integer, at least 1"``."""
    listed = f"a list, or {'numbers' if _of_numbers(setting) else 'names'} with commas"
    words = {bool: "true or false", int: "an integer", float: "a number", tuple: listed}
    text = words.get(setting.kind, "text")
    if setting.choices:
        text = "one of " + ", ".join(setting.choices)
    if setting.doc.sentences:
        text = "text, or a list of texts"
    text += "".join(f", {bound}" for bound in _bounds(setting.annotation))
    return text + (" or auto" if setting.tuned else " or none" if setting.optional else "")


def _of_numbers(setting: Setting) -> bool:
    """Whether a list setting's entries are numbers."""
    lists = (part for part in _parts(setting.annotation) if get_origin(part) is tuple)
    return any(int in _parts(get_args(part)[0]) for part in lists)


def _bounds(annotation: Any) -> list[str]:
    metas = _metas(annotation)
    words = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))
    return [f"{text} {getattr(m, key):,}" for m in metas for key, text in words if getattr(m, key) is not None]


def _metas(annotation: Any) -> list[msgspec.Meta]:
    """The bounds of an annotation; those of ``Annotated[int, ...] | None`` lie inside the union."""
    own = [m for m in getattr(annotation, "__metadata__", ()) if isinstance(m, msgspec.Meta)]
    inner = [annotation.__origin__] if hasattr(annotation, "__metadata__") else get_args(annotation)
    return own + [meta for part in inner for meta in _metas(part)]


def flag(setting: Setting) -> str:
    """The option on the command line: ``--lora-r``."""
    return "--" + setting.name.replace("_", "-")
