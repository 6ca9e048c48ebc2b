"""Values of cells: their kind in words, JSON inside text, texts inside lists."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qlora_core.data.bad_rows import RowRejected

MAX_QUOTED = 60
_FLAGS = {"true": True, "1": True, "false": False, "0": False}


def kind_of(value: Any) -> str:
    """What a value is, in a person's words."""
    if value is None:
        return "null"
    names = (
        (bool, "true or false"),
        (str, "a text"),
        (bytes | bytearray, "binary data"),
        (Mapping, "an object"),
        (int | float, "a number"),
        (Sequence, "a list"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def quoted(names: Sequence[str]) -> str:
    """``"a", "b"``, cut off where it grows too long to read."""
    text = ", ".join(f'"{name}"' for name in names)
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED].rpartition(",")[0] + ", ..."


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, blank text, or a list or object of nothing else."""
    if isinstance(value, str):
        return not value or value.isspace()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return value is None or (isinstance(value, list | tuple) and all(map(is_empty, value)))


def flag_of(value: Any) -> bool | None:
    """True or false, however it is written (1, 0.0, "true"); ``None`` for anything else."""
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def unpacked(value: Any) -> Any:
    """The list or object that a text holds as JSON, which is how CSV holds one; anything else as it is.

    Raises:
        RowRejected: it is nested too deep to read.
    """
    if not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
    except RecursionError as error:
        raise RowRejected("brackets inside brackets, too deep to read") from error


def leaves(value: Any) -> Iterator[Any]:
    """What lies in lists and objects, at any depth; a plain value itself."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value
