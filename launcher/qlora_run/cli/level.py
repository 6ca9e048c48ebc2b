"""Levels of settings (profile, recipe, config file, command line) read as typed values and merged, each exactly once.

Own and foreign names are taken together here, so this is where two of them are found to contradict each other.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from msgspec import structs

from qlora_profiles.alias import Alias, meaning, shown, word_of
from qlora_profiles.alias_parts import LASTING, PARTS, put_together
from qlora_profiles.aliases import find
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Given, Source, Written, strongest
from qlora_profiles.registry import lookup, parse
from qlora_run.cli.names import canonical

LEFT_OUT = "..."
"""Stands for the value of a key that is left out, whatever it holds."""

PREPARING = ("input", "format", "instruction_col", "input_col", "output_col", "system_col")
PREPARED_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

_Found = dict[str, list[Given]]
"""What one level gives for a setting, or for a part of one: once for each name that it uses."""


def located(place: str, message: str) -> str:
    """A message behind the file and line that it is about: ``run.yaml:7    unknown key``."""
    return f"{place}    {message}" if place else message


class Levels:
    """What counts of the levels read so far; each is stronger than those before it.

    ``given`` holds the typed values, ``notes`` what was read and set nothing. Parts of a setting still count in
    stronger levels: a config file's accumulation with the command line's batch.
    """

    def __init__(self) -> None:
        self.given: dict[str, Given] = {}
        self.notes: list[str] = []
        self._parts: dict[str, Given] = {}

    def read(self, written: Iterable[Written], source: Source) -> None:
        """Read one more level.

        Raises:
            UserError: a value out of range or of another type, or two names that contradict each other.
        """
        level = list(written)
        found: _Found = {}
        for each in level:
            for key, given in self._meant(each, source):
                found.setdefault(key, []).append(given)
        self._put_together(found, source)
        self._leave_out_prepared_file(level, found)
        self.given = strongest(self.given, {name: _agreed(given, name == "data") for name, given in found.items()})

    def _meant(self, written: Written, source: Source) -> Iterator[tuple[str, Given]]:
        """Setting or part, and what is given for it."""
        row = _row(written)
        try:
            meant = meaning(row, written.raw) if row else {written.name: written.raw}
        except UserError as error:
            fix = error.fix or f"qlora-run help {written.name}"
            raise UserError(located(written.place, f"{written.label}: {error.message}"), fix) from error
        if row and not meant and word_of(written.raw) != "null":
            value = "" if written.raw == LEFT_OUT else f" {shown(written.raw)}"
            self.notes.append(located(written.place, f"{written.label}{value} sets nothing: {row.note}"))
        reason = f"your {written.label.lstrip('-')} {shown(written.raw)}" if row and row.name not in row.to else ""
        for key, raw in meant.items():
            value = raw if key in PARTS else _typed(key, raw, written)
            yield key, Given(value=value, source=source, reason=reason, written=written)

    def _put_together(self, found: _Found, source: Source) -> None:
        """Replace the parts in ``found`` by the settings that they make, with parts of weaker levels."""
        own = {key: _agreed(found.pop(key)) for key in [key for key in found if key in PARTS]}
        parts = {key: part for key, part in self._parts.items() if PARTS[key] not in found} | own
        for setting in dict.fromkeys(PARTS[key] for key in own):
            mine = {key: part for key, part in parts.items() if PARTS[key] == setting}
            found.setdefault(setting, []).append(_whole(setting, mine, source))
        self._parts = {key: part for key, part in parts.items() if PARTS[key] in LASTING}

    def _leave_out_prepared_file(self, level: list[Written], found: _Found) -> None:
        """A data script's ``--output rows.jsonl`` names a copy that nobody needs: rows are read where they lie."""
        output = found.get("output", [])
        prepared = [given for given in output if str(given.value).lower().endswith(PREPARED_SUFFIXES)]
        if prepared and len(prepared) == len(output) and any(written.name in PREPARING for written in level):
            del found["output"]
            what = f"{prepared[0].written.label} {prepared[0].value}"
            self.notes.append(f"{what}: no prepared copy is written, rows are read where they lie")


def _row(written: Written) -> Alias | None:
    return find(written.name, "train", written.family)


def _typed(name: str, raw: Any, written: Written) -> Any:
    setting = lookup(name)
    try:
        return parse(setting, raw)
    except UserError as error:
        message = error.message.replace(f"{name}:", f"{written.label}:", 1)
        raise UserError(located(written.place, message), f"qlora-run help {name}") from error


def _whole(setting: str, parts: dict[str, Given], source: Source) -> Given:
    try:
        return put_together(setting, parts, source)
    except UserError as error:
        place = next((part.written.place for part in parts.values() if part.written.place), "")
        raise UserError(located(place, error.message), error.fix) from error


def _agreed(found: list[Given], repeats: bool = False) -> Given:
    """The one value that all share. Lists that add are joined; a repeated list option too, each entry once unless
    ``repeats`` matter."""
    first = found[0]
    if isinstance(first.value, tuple) and _joined(found):
        entries = [entry for given in found for entry in given.value]
        return structs.replace(first, value=tuple(entries if repeats else dict.fromkeys(entries)))
    for other in found[1:]:
        if other.value != first.value:
            raise _contradiction(first, other)
    return first


def _joined(found: list[Given]) -> bool:
    rows = (_row(given.written) for given in found)
    return any(row and row.adds for row in rows) or len({canonical(given.written.label) for given in found}) == 1


def _contradiction(one: Given, other: Given) -> UserError:
    a, b = one.written, other.written
    line = f" ({b.place})" if b.place else ""
    text = f"{a.label} {shown(a.raw)} contradicts {b.label} {shown(b.raw)}{line}"
    return UserError(located(a.place, text), "remove one of them")
