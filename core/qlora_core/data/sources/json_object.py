"""One JSON object that holds all rows: columns, pandas' forms, or a list under a key."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from qlora_core.data.bad_rows import BadRow, RowRejected
from qlora_core.data.schema import ANSWER_COLUMNS, KNOWN_COLUMNS, MESSAGE_COLUMNS, ROLE_KEYS
from qlora_core.data.sources.formats import Row, Rows
from qlora_core.data.sources.json_rows import Elements
from qlora_core.data.sources.json_text import parse_value
from qlora_profiles.errors import UserError
from qlora_profiles.visible import on_one_line

ROW_LISTS = ("data", "instances", "rows", "train", "examples", "items", "records", "conversations", "samples")
"""Names under which files keep their rows."""
TURN_LISTS = frozenset(MESSAGE_COLUMNS) - set(ROW_LISTS)
"""Names under which rows keep their messages, and files no rows."""
SHAPING = frozenset((*KNOWN_COLUMNS, "system_prompt", "context", "tools", "functions"))
"""What would change every row if it were not dropped."""
MOST_NAMED = 5
_KEY = re.compile(r'\s*("(?:[^"\\]|\\.)*+")\s*:\s*', re.DOTALL)


class Held(NamedTuple):
    """The rows that an object holds, and what a person should know of where they were."""

    rows: Rows
    notes: list[str]


def rows_held(text: str, name: str, start: int, value: dict[str, Any], fields: Mapping[str, str]) -> Held | None:
    """The rows inside ``value``, which is the whole text from ``start`` on; ``None`` where it is itself a row.

    ``fields`` maps wanted names to the columns or message keys that hold them.

    Raises:
        UserError: there are rows in it, but not where they can be read without a guess; says where.
    """
    roles = [fields[key] for key in ROLE_KEYS if key in fields]
    if any(_is_list_of(part, dict) and any(role in part[0] for role in roles) for part in value.values()):
        return None
    known = {*KNOWN_COLUMNS, *fields.values()}
    if _is_row(value, known):
        return None
    if {"columns", "data"} <= value.keys() and _is_list_of(value["data"], list):
        return _split_form(name, value)
    turns = {*MESSAGE_COLUMNS, *(column for wanted, column in fields.items() if wanted in MESSAGE_COLUMNS)}
    if not _is_of_turns(value, turns) and _is_columnar(value, known):
        return _columnar(name, value, known)
    if value and all(isinstance(part, dict) and part for part in value.values()):
        return _of_objects(name, value, known)
    return _listed(text, name, start, value, known)


def broken_list(text: str, start: int) -> tuple[str, int] | None:
    """The key and place of the first list of rows in an object that cannot be read whole."""
    pos = start + 1
    while found := _KEY.match(text, pos):
        key, value_at = found[1][1:-1], found.end()
        opens = re.compile(r'\[\s*\{\s*"([^"]*)"').match(text, value_at)
        if opens and key in ROW_LISTS and opens[1] not in ROLE_KEYS:
            return key, value_at
        try:
            _, pos = parse_value(text, value_at)
        except RowRejected:
            return None
        comma = re.compile(r"\s*,").match(text, pos)
        if comma is None:
            return None
        pos = comma.end()
    return None


def _is_row(value: dict[str, Any], known: Collection[str]) -> bool:
    """A row has messages, or an answer that is a text."""
    lists = (value[key] for key in (*MESSAGE_COLUMNS, "prompt") if isinstance(value.get(key), list))
    if any(messages and (_is_message(messages[0]) or _is_exchange(messages[0])) for messages in lists):
        return True
    return any(isinstance(value.get(key), str) for key in (*ANSWER_COLUMNS, "text") if key in known)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in ROLE_KEYS)


def _is_exchange(value: Any) -> bool:
    """A question and its answer held together: ``{"human": ..., "assistant": ...}``."""
    return isinstance(value, dict) and any(key in value for key in ("human", "user")) and len(value) in (2, 3)


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(part, kind) for part in value)


def _holds_rows(value: Any) -> bool:
    return _is_list_of(value, dict) and not _is_message(value[0])


def _is_of_turns(value: dict[str, Any], turns: Collection[str]) -> bool:
    """Whether the object is one row whose messages are bare texts, not JSON texts of messages row by row."""
    return any(_is_list_of(value.get(key), str) and not value[key][0].lstrip().startswith("[") for key in turns)


def _is_columnar(value: dict[str, Any], known: Collection[str]) -> bool:
    """Whether every known column is a list of cells; of unknown ones alone, two lists and nothing else."""
    present = [key for key in value if key in known]
    if present:
        return all(isinstance(value[key], list) and not _holds_rows(value[key]) for key in present) and any(
            value[key] for key in present
        )
    return len(value) > 1 and all(_is_list_of(part, str) for part in value.values())


def _columnar(name: str, value: dict[str, Any], known: Collection[str]) -> Held:
    lists = {key: part for key, part in value.items() if isinstance(part, list)}
    lengths = {key: len(part) for key, part in lists.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f'"{key}" {count:,}' for key, count in list(lengths.items())[:MOST_NAMED])
        raise UserError(f"{name}  holds columns, not rows, and they are of different lengths: {said}")
    _check_nothing_shaping(name, [key for key in value if key not in lists])
    rows = ({key: part[at] for key, part in lists.items()} for at in range(next(iter(lengths.values()))))
    return Held(_numbered(rows), [_columns_note(name, next(iter(lengths.values())))])


def _columns_note(name: str, rows: int) -> str:
    return f"{name} holds columns, not rows: read as {rows:,} {'row' if rows == 1 else 'rows'}"


def _split_form(name: str, value: dict[str, Any]) -> Held:
    """pandas' ``orient="split"``: the names of the columns, and the cells row by row."""
    header = value["columns"]
    if not _is_list_of(header, str) or len(set(header)) < len(header):
        raise UserError(f'{name}  "columns" is no list of different names, so "data" cannot be read')
    if any(len(cells) != len(header) for cells in value["data"]):
        raise UserError(f'{name}  not every row of "data" has as many cells as there are "columns" ({len(header)})')
    rows = (dict(zip(header, cells, strict=True)) for cells in value["data"])
    return Held(_numbered(rows), [f'{name} holds a table split in "columns" and "data": read as rows'])


def _of_objects(name: str, value: dict[str, Any], known: Collection[str]) -> Held | None:
    """pandas' ``orient="columns"`` and ``orient="index"``."""
    parts = list(value.values())
    keys = [*parts[0]]
    alike = all(part.keys() == parts[0].keys() for part in parts)
    if alike and (known & value.keys() or all(key.isdigit() for key in keys)) and not _is_deep(parts[0]):
        rows = ({key: part[at] for key, part in value.items()} for at in keys)
        return Held(_numbered(rows), [_columns_note(name, len(keys))])
    if all(known & part.keys() for part in parts) and not any(map(_is_deep, parts)):
        rows = (dict(part) for part in parts)
        return Held(
            _numbered(rows), [f"{name} holds rows by name: read as {len(parts):,} rows, the names are not used"]
        )
    if _paths(value):
        raise _deeper(name, value)
    return None


def _is_deep(part: dict[str, Any]) -> bool:
    """Whether an object holds lists of rows or of cells instead of cells."""
    return any(_is_list_of(cell, str) or _holds_rows(cell) for cell in part.values())


def _listed(text: str, name: str, start: int, value: dict[str, Any], known: Collection[str]) -> Held | None:
    """The one list of rows that lies under a key."""
    lists = [key for key, part in value.items() if _holds_rows(part) and key not in TURN_LISTS]
    if "schema" in value and "data" in lists:  # pandas' orient="table"
        lists = ["data"]
    lists = [key for key in lists if key in ROW_LISTS] if len(lists) > 1 and _main_list(lists) else lists
    if not lists:
        if any(isinstance(part, dict) and _paths(part) for part in value.values()):
            raise _deeper(name, value)
        return None
    if len(lists) > 1:
        raise _several(name, lists)
    key = lists[0]
    first = value[key][0]
    if not known & first.keys() and (deeper := _paths(first, f"{key}[].")):
        raise UserError(f"{name}  its rows lie deeper than one list: under {_named(deeper)}", _flatten(name))
    beside = [other for other in value if other not in (key, "schema")]
    _check_nothing_shaping(name, [other for other in beside if value[other]])
    notes = [f'{name}: the rows are those under "{on_one_line(key)}"']
    if beside:
        notes.append(f"beside the rows, not used: {_named(beside)}")
    return Held(_unwrapped(list_under(text, name, start, key), name), notes)


def _main_list(lists: Collection[str]) -> bool:
    """Whether one of several lists is the rows by its name, and no other one is."""
    return False if {"train", "test", "validation"} & set(lists) else sum(key in ROW_LISTS for key in lists) == 1


def list_under(text: str, name: str, start: int, key: str) -> Rows:
    """The elements of the list under ``key`` of the object at ``start``."""
    pos = start + 1
    while found := _KEY.match(text, pos):
        if parse_value(found[1])[0] == key:
            yield from Elements(text, name).list_at(found.end())
            return
        _, end = parse_value(text, found.end())
        pos = text.index(",", end) + 1


def _unwrapped(rows: Rows, name: str) -> Rows:
    """Rows as the hub's viewer wraps them, ``{"row_idx": 0, "row": {...}}``, without their wrapping."""
    for row in rows:
        inner = row.columns.get("row") if isinstance(row, Row) else None
        if isinstance(row, BadRow) or "row_idx" not in row.columns or not isinstance(inner, dict):
            yield row
        elif row.columns.get("truncated_cells"):
            cut = _named(row.columns["truncated_cells"])
            fault = RowRejected(f"the viewer cut cells of this row: {cut}", fix="the data set's own files")
            yield fault.row(name, row.line, row.raw, row.number)
        else:
            yield row._replace(columns=inner)


def _numbered(rows: Iterator[dict[str, Any]]) -> Rows:
    return (Row(1, columns, number=number) for number, columns in enumerate(rows, 1))


def _check_nothing_shaping(name: str, beside: list[str]) -> None:
    shaping = [key for key in beside if key.lower() in SHAPING]
    if shaping:
        fix = "--system-prompt TEXT" if {"system", "system_prompt"} >= set(shaping) else "write it into every row"
        raise UserError(f"{name}  {_named(shaping)} stands beside the rows, for all of them: it would be dropped", fix)


def _paths(value: dict[str, Any], before: str = "") -> list[str]:
    """Where lists of objects lie below an object, at most two levels down."""
    found = []
    for key, part in value.items():
        if _holds_rows(part):
            found += _paths(part[0], f"{before}{key}[].") or [f"{before}{key}"]
        elif isinstance(part, dict):
            found += _paths(part, f"{before}{key}.") if before.count(".") < MOST_NAMED else []
            if part and all(_is_list_of(cell, str) for cell in part.values()):
                found.append(f"{before}{key}")
    return found


def _deeper(name: str, value: dict[str, Any]) -> UserError:
    where = _paths(value)
    if len(where) > 1:
        return _several(name, where)
    return UserError(f"{name}  its rows lie deeper than one list: under {_named(where)}", _extract(name, where[0]))


def _several(name: str, lists: list[str]) -> UserError:
    return UserError(f"{name}  holds several lists of rows: {_named(lists)}", _extract(name, lists[0]))


def _extract(name: str, path: str) -> str:
    return f'one list a file: jq ".{path}" {name} > rows.json'


def _flatten(name: str) -> str:
    return f"one object a row, with a question and its answer, instead of {name}"


def _named(names: Collection[Any]) -> str:
    shown = ", ".join(f'"{on_one_line(str(name))[:60]}"' for name in list(names)[:MOST_NAMED])
    return shown + (", ..." if len(names) > MOST_NAMED else "")
