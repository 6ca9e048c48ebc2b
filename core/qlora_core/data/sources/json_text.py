"""JSON read strictly, with faults told in words a person knows."""

import json
from collections.abc import Callable
from typing import Any

from qlora_core.data.bad_rows import RowRejected

BEFORE, AFTER = 32, 24  # characters of an excerpt on either side of the fault
NEAR = 1 << 14  # characters
UNCLOSED = "a quote is never closed"
ENDS_EARLY = "it ends too early: a } or ] is missing"
SINGLE_QUOTES = "single quotes where JSON wants double quotes"
TRAILING_COMMA = "a comma too many before the closing bracket"
PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}


def parse_value(text: str, start: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at ``start`` and where it ends.

    Raises:
        RowRejected: it is no JSON; says why in words.
    """
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise broken(text, error) from error
    except RecursionError as error:
        raise RowRejected("broken JSON: brackets inside brackets, too deep to read") from error
    except ValueError as error:  # int() refuses thousands of digits
        raise RowRejected("broken JSON: a number with too many digits") from error


def parse_near(text: str, start: int, most: int | None = None) -> tuple[Any, int]:
    """As ``parse_value``, where many values of a long text are broken: an error costs a glance at what lies near.

    json's own errors count the lines of the whole text. At ``most`` so many characters are looked at, or all needed.
    """
    near = text[start : start + (most or NEAR)]
    try:
        value, end = parse_value(near)
    except RowRejected as fault:
        at_the_cut = fault.at is not None and (fault.at > len(near) - AFTER or UNCLOSED in fault.reason)
        if at_the_cut and most is None and start + len(near) < len(text):
            return parse_value(text, start)
        fault.at = None if fault.at is None else fault.at + start
        raise
    return value, start + end


def value_end(text: str, start: int) -> int | None:
    """Where a value ends that was rejected for what it says, not for how it is written."""
    try:
        return json.JSONDecoder().raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def parse_line(text: str) -> Any:
    """The one JSON value that ``text`` holds.

    Raises:
        RowRejected: it holds none, a broken one, or more than one.
    """
    first = len(text) - len(text.lstrip())
    value, end = parse_value(text, first)
    rest = len(text) - len(text[end:].lstrip())
    if rest < len(text):
        raise broken(text, json.JSONDecodeError("Extra data", text, rest))
    return value


def broken(text: str, error: json.JSONDecodeError) -> RowRejected:
    """The fault in words, with the text around it."""
    explain = next((rule for start, rule in _RULES if error.msg.startswith(start)), _expecting_value)
    ends_here = error.msg.startswith("Unterminated") or not text[error.pos :].strip()
    excerpt = excerpt_at(text, _line_end(text, error.pos) if ends_here else error.pos, ends_here)
    return RowRejected(f"broken JSON: {explain(text, error.pos)}", excerpt=excerpt, at=error.pos)


def excerpt_at(text: str, pos: int, ends_here: bool = False) -> str:
    """One line of text around ``pos``, cut short, with an arrow to the fault."""
    window = max(0, pos - BEFORE)
    line_start = text.rfind("\n", window, pos) + 1
    first = line_start or window
    line_end = text.find("\n", pos, pos + AFTER)
    last = line_end if line_end >= 0 else pos + AFTER
    dots = "..." if first == window and first and text[first - 1] != "\n" else ""
    before, after = dots + printable(text[first:pos]), printable(text[pos:last]).rstrip()
    if ends_here or not after:
        return f"{before.rstrip()}        <- ends here"
    return f"{before}{after}\n  {' ' * _columns(before)}^ here"


def printable(text: str) -> str:
    """Control characters and lone surrogates as spaces: what a terminal may be sent."""
    return "".join(char if char.isprintable() else " " for char in text)


def _columns(text: str) -> int:
    """Columns on a screen: East Asian wide characters take two."""
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)


def _line_end(text: str, pos: int) -> int:
    end = text.find("\n", pos)
    return len(text) if end < 0 else end


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise RowRejected(f'the key "{twice}" stands twice in one object')
    return value


def _no_constant(name: str) -> Any:
    raise RowRejected(f"broken JSON: {name} is not JSON (write null)")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _expecting_comma(text: str, pos: int) -> str:
    if not text[pos:].strip():
        return ENDS_EARLY
    inside_text = text[pos - 1] == '"' and text[pos] not in '"{[,}]: \n'
    return 'a quote inside the text is not escaped (write \\")' if inside_text else "a comma is missing"


def _expecting_key(text: str, pos: int) -> str:
    char = text[pos : pos + 1]
    if not char.strip() and not text[pos:].strip():
        return ENDS_EARLY
    return {"'": SINGLE_QUOTES, "}": TRAILING_COMMA}.get(char, "a key without double quotes")


def _expecting_value(text: str, pos: int) -> str:
    rest = text[pos:]
    if not rest.strip():
        return "it ends too early: a value is missing"
    if rest[0] == "'":
        return SINGLE_QUOTES
    if rest[0] in "]}" and text[:pos].rstrip().endswith(","):
        return TRAILING_COMMA
    for word, json_word in PYTHON_WORDS.items():
        if rest.startswith(word):
            return f"{word} is Python, JSON writes {json_word}"
    if rest[0] in ",]}":
        return "a value is missing"
    return "this is no JSON object" if not text[:pos].strip() else "a text without quotes"


def _extra(text: str, pos: int) -> str:
    if text[pos] == ",":
        return "a comma after the object"
    return "two objects on one line" if text[pos] == "{" else "more text after the object"


_RULES: tuple[tuple[str, Callable[[str, int], str]], ...] = (
    ("Unterminated string", lambda text, pos: UNCLOSED),
    ("Invalid control character", lambda text, pos: "a raw line break or tab inside quotes (write \\n or \\t)"),
    ("Invalid \\", lambda text, pos: "a backslash that stands alone (write \\\\)"),
    ("Illegal trailing comma", lambda text, pos: TRAILING_COMMA),
    ("Expecting property name", _expecting_key),
    ("Expecting ':'", lambda text, pos: "a colon is missing after a key"),
    ("Expecting ','", _expecting_comma),
    ("Expecting value", _expecting_value),
    ("Extra data", _extra),
)
