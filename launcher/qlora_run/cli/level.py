"""One level of wishes (a profile, a config file, the command line) read as typed settings.

Own and foreign names are taken together here, so this is where two of them are found to contradict each other.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from qlora_profiles.alias import meaning, word_of
from qlora_profiles.alias_parts import LASTING, PARTS, Part, put_together
from qlora_profiles.aliases import find
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Given, Source
from qlora_profiles.registry import lookup, parse
from qlora_run.cli.names import canonical

LEFT_OUT = "..."
"""Stands for the value of a key that is left out, whatever it holds."""

PREPARING = ("input", "format", "instruction_col", "input_col", "output_col", "system_col")
PREPARED_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Wish(Struct, frozen=True, kw_only=True):
    """A name and a raw value as somebody wrote them.

    ``label`` is the name as written (``--lora_r``, ``lora_config.r``), ``place`` the file and line if it has one,
    ``family`` the family of the config section that it stands in.
    """

    name: str
    raw: Any
    label: str
    place: str = ""
    family: str | None = None


class Level(Struct, frozen=True, kw_only=True):
    """What one level asks for. A ``None`` in ``given`` hands a setting back to the planner.

    ``parts`` still count in stronger levels; ``assumed`` says what was assumed for a setting's missing part.
    """

    given: dict[str, Given | None]
    parts: dict[str, Part]
    notes: tuple[str, ...] = ()
    assumed: dict[str, str] = {}


class _Claim(Struct, frozen=True, kw_only=True):
    """One wish's value for one setting or part."""

    wish: Wish
    value: Any
    reason: str = ""
    adds: bool = False

    @property
    def label(self) -> str:
        return self.wish.label


def located(place: str, message: str) -> str:
    """A message behind the file and line that it is about: ``run.yaml:7    unknown key``."""
    return f"{place}    {message}" if place else message


def read_level(wishes: Iterable[Wish], source: Source, weaker: Mapping[str, Part] | None = None) -> Level:
    """The typed wishes of a level; ``weaker`` holds parts of lower levels that still count.

    Raises:
        UserError: a value out of range or of another type, or two names that contradict each other.
    """
    claims: dict[str, list[_Claim]] = {}
    notes: list[str] = []
    wishes = list(wishes)
    for wish in wishes:
        _claim(wish, claims, notes)
    own = {key: _part(_agreed(claims.pop(key))) for key in [k for k in claims if k in PARTS]}
    parts = {k: p for k, p in (weaker or {}).items() if PARTS[k] not in claims} | own
    assumed: dict[str, str] = {}
    for setting in dict.fromkeys(PARTS[key] for key in own):
        _claim_whole(setting, parts, claims, assumed)
    _leave_out_prepared_file(wishes, claims, notes)
    given = {name: _given(name, _agreed(found), source) for name, found in claims.items()}
    lasting = {key: part for key, part in parts.items() if PARTS[key] in LASTING}
    return Level(given=given, parts=lasting, notes=tuple(dict.fromkeys(notes)), assumed=assumed)


def _claim(wish: Wish, claims: dict[str, list[_Claim]], notes: list[str]) -> None:
    row = find(wish.name, "train", wish.family)
    reason = f"your {wish.label.lstrip('-')} {_shown(wish.raw)}" if row and row.name not in row.to else ""
    try:
        meant = meaning(row, wish.raw) if row else {wish.name: wish.raw}
    except UserError as error:
        fix = error.fix or f"qlora-run help {wish.name}"
        raise UserError(located(wish.place, f"{wish.label}: {error.message}"), fix) from error
    if row and not meant and word_of(wish.raw) != "null":
        value = "" if wish.raw == LEFT_OUT else f" {_shown(wish.raw)}"
        notes.append(located(wish.place, f"{wish.label}{value} sets nothing: {row.note}"))
    for key, raw in meant.items():
        value = raw if key in PARTS else _typed(key, raw, wish)
        claims.setdefault(key, []).append(_Claim(wish=wish, value=value, reason=reason, adds=bool(row and row.adds)))


def _typed(name: str, raw: Any, wish: Wish) -> Any:
    setting = lookup(name)
    try:
        return parse(setting, raw)
    except UserError as error:
        message = error.message.replace(f"{name}:", f"{wish.label}:", 1)
        raise UserError(located(wish.place, message), f"qlora-run help {name}") from error


def _agreed(claims: list[_Claim]) -> _Claim:
    """The one value that all claims share. Lists that add are joined; a repeated list option too."""
    lists = isinstance(claims[0].value, tuple)
    if lists and (any(claim.adds for claim in claims) or len({canonical(claim.label) for claim in claims}) == 1):
        joined = tuple(dict.fromkeys(entry for claim in claims for entry in claim.value))
        return _Claim(wish=claims[0].wish, value=joined, reason=claims[0].reason)
    for other in claims[1:]:
        if other.value != claims[0].value:
            raise _contradiction(claims[0], other)
    return claims[0]


def _contradiction(one: _Claim, other: _Claim) -> UserError:
    line = f" ({other.wish.place})" if other.wish.place else ""
    text = f"{one.label} {_shown(one.wish.raw)} contradicts {other.label} {_shown(other.wish.raw)}{line}"
    return UserError(located(one.wish.place, text), "remove one of them")


def _part(claim: _Claim) -> Part:
    return Part(
        name=claim.wish.name,
        label=claim.label.lstrip("-"),
        value=claim.value,
        raw=claim.wish.raw,
        place=claim.wish.place,
    )


def _claim_whole(
    setting: str, parts: Mapping[str, Part], claims: dict[str, list[_Claim]], assumed: dict[str, str]
) -> None:
    """Adds the claim that the parts of ``setting`` make together."""
    mine = {key: part for key, part in parts.items() if PARTS[key] == setting}
    try:
        whole = put_together(setting, mine)
    except UserError as error:
        place = next((part.place for part in mine.values() if part.place), "")
        raise UserError(located(place, error.message), error.fix) from error
    label = " and ".join(part.label for part in mine.values())
    wish = Wish(name=setting, raw=f"({setting} {whole.value})", label=label)
    claims.setdefault(setting, []).append(_Claim(wish=wish, value=whole.value, reason=whole.reason))
    if whole.note:
        assumed[setting] = whole.note


def _leave_out_prepared_file(wishes: list[Wish], claims: dict[str, list[_Claim]], notes: list[str]) -> None:
    """A data script's ``--output rows.jsonl`` names a copy that nobody needs: rows are read where they lie."""
    output = claims.get("output", [])
    prepared = [claim for claim in output if str(claim.value).lower().endswith(PREPARED_SUFFIXES)]
    if prepared and len(prepared) == len(output) and any(wish.name in PREPARING for wish in wishes):
        del claims["output"]
        label = prepared[0].label
        notes.append(f"{label} {prepared[0].value}: no prepared copy is written, rows are read where they lie")


def _given(name: str, claim: _Claim, source: Source) -> Given | None:
    if claim.value is None and lookup(name).tuned:
        return None
    return Given(value=claim.value, source=source, reason=claim.reason)


def _shown(raw: Any) -> str:
    if isinstance(raw, bool):
        return str(raw).lower()
    return ",".join(map(str, raw)) if isinstance(raw, list | tuple) else "none" if raw is None else str(raw)
