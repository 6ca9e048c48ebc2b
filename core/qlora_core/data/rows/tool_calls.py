"""Tools and the calls to them, as templates want them, from any of the forms that rows have."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.values import MAX_QUOTED, kind_of, unpacked

Tool = Mapping[str, Any]


def tools_of(value: Any, name: str) -> tuple[Tool, ...]:
    """Functions that an assistant may call, each ``{"type": "function", "function": {"name": ..., ...}}``.

    Raises:
        RowRejected: they are no objects with a name, nor JSON text of such.
    """
    return tuple(_tool(tool, f'"{name}" {number}') for number, tool in enumerate(_listed(value, name), 1))


def calls_of(value: Any, place: str) -> tuple[Tool, ...]:
    """Calls, each ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``, with the id that it has.

    Raises:
        RowRejected: they are no objects with a name and arguments that are an object, nor JSON text of such.
    """
    return tuple(_call(call, place) for call in _listed(value, place))


def without_nulls(value: Any) -> Any:
    """Objects without keys that are null: Parquet gives every object of a column the keys of all of them."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _listed(value: Any, place: str) -> Sequence[Any]:
    found = unpacked(value)
    if isinstance(found, Mapping):
        return [found]
    if isinstance(found, list):
        return found
    if isinstance(found, str) and not found.strip():
        return []
    raise RowRejected(f'{place}: {kind_of(found)} is no JSON list of functions {{"name": ...}}')


def _tool(value: Any, place: str) -> Tool:
    tool = _named(value, place)
    if "function" in tool:
        return {"type": "function", **tool}
    return {"type": "function", "function": {key: item for key, item in tool.items() if key != "type"}}


def _named(value: Any, place: str) -> Mapping[str, Any]:
    """An object that has a name, itself or in its ``function``."""
    found = unpacked(value)
    if isinstance(found, Mapping) and found.get("type", "function") != "function":
        raise RowRejected(f"{place} is of type {str(found['type'])[:MAX_QUOTED]}; only functions are known")
    inner = found.get("function", found) if isinstance(found, Mapping) else {}
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not (isinstance(name, str) and name.strip()):
        raise RowRejected(f'{place} is no object with the "name" of a function')
    return dict(found)


def _call(value: Any, place: str) -> Tool:
    call = _named(value, f"{place}: a call")
    inner = call.get("function", call)
    arguments = inner.get("arguments", inner.get("parameters"))
    function = {"name": inner["name"], "arguments": _arguments(arguments, f"{place}: the call of {inner['name']}")}
    number = {"id": call["id"]} if call.get("id") is not None else {}
    return {**number, "type": "function", "function": function}


def _arguments(value: Any, place: str) -> Mapping[str, Any]:
    if value is None or (isinstance(value, str) and not value.strip()):
        return {}
    found = unpacked(value)
    if not isinstance(found, Mapping):
        raise RowRejected(f"{place} has arguments that are {kind_of(found)}, not a JSON object")
    return found


def names_of(tools: Sequence[Tool]) -> list[str]:
    """The tools' names, quoted as JSON writes them."""
    return [json.dumps(tool["function"]["name"], ensure_ascii=False) for tool in tools]
