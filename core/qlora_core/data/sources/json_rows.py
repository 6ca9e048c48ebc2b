"""Rows of JSON text, however it is laid out; one broken row costs that row alone.

A reader that meets a fault looks for the next place where a row begins, so line breaks decide nothing: a list on one
line, five rows a line and rows over many lines lose the same row.
"""

import re
from collections.abc import Generator
from typing import Any, NamedTuple

from qlora_core.data.bad_rows import BadRow, RowRejected
from qlora_core.data.sources.formats import Row, Rows
from qlora_core.data.sources.json_text import UNCLOSED, excerpt_at, parse_line, parse_near, parse_value, value_end

WHITESPACE = " \t\r\n"
INSIDE_ROWS = frozenset(("role", "from", "type"))  # keys of messages and their parts, which are no rows themselves
ROW_OVER_LINES = 1 << 18  # characters of a row that is looked for over several lines among rows of one line
SEARCH, COST_OF_A_TRY = 20, 1000  # so many times the length of the text is parsed for rows behind faults; characters
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\]]', re.DOTALL)
_FIRST_KEY = re.compile(r'\{\s*"([^"\\]*)"\s*:')
_BEHIND_ROW = re.compile(r"\}\s*,?\s*$")
_NO_SPACE = re.compile(r"[^ \t\r\n]")
_COMMENT = re.compile(r"//[^\n]*|#[^\n]*|/\*.*?\*/", re.DOTALL)
Found = Generator[Row | BadRow, None, int]
"""Rows as they come, and the position behind the last one."""


class Elements:
    """Reads a text's rows one after another, with their lines and numbers."""

    def __init__(self, text: str, name: str) -> None:
        self.text, self.name = text, name
        self.number = 0
        self._keys: set[str] = set()
        self._first_keys: set[str] = set()
        self._counted, self._line = 0, 1
        self._lost = False  # whether the last row was broken, so that nothing behind it is sure
        self._careful = False  # whether any was
        self._search_left = SEARCH * len(text) + 10_000

    def skip(self, pos: int) -> int:
        """The next position that is not white space, or the text's end."""
        found = _NO_SPACE.search(self.text, pos)
        return found.start() if found else len(self.text)

    def all(self) -> Rows:
        """All rows of the text: lists and single objects, one after another."""
        pos = self.skip(0)
        while pos < len(self.text):
            if self.text[pos] == "[":
                pos = self.skip((yield from self.list_at(pos)))
                if pos < len(self.text) and self.text[pos] not in ",[{":
                    yield self._between(pos, "more text after the closing ]")
                    return
            elif self.text[pos] == ",":
                pos = self.skip(pos + 1)
            else:
                pos = self.skip((yield from self._element(pos)))

    def list_at(self, pos: int) -> Found:
        """The elements of the list that opens at ``pos``; faults between them are told, and read past."""
        pos = yield from self._past_comments(self.skip(pos + 1))
        while self._at(pos) not in ("]", ""):
            pos = yield from self._element(pos)
            pos = yield from self._past_comments(self.skip(pos))
            pos = yield from self._past_comma(pos)
        if not self._at(pos) and not self._lost:
            yield self._between(pos, "it ends too early: a ] is missing")
        return pos + 1

    def _past_comma(self, pos: int) -> Found:
        """Behind what stands between two elements; a broken one in front of it has been told already."""
        char = self._at(pos)
        if char not in (",", "]", "") and not self._lost:
            yield self._between(pos, "a comma is missing")
        if char != ",":
            return pos
        pos = yield from self._past_comments(self.skip(pos + 1))
        while self._at(pos) == ",":
            yield self._between(pos, "two commas one after another")
            pos = self.skip(pos + 1)
        if self._at(pos) == "]":
            yield self._between(pos, "a comma too many before the closing bracket")
        return pos

    def _at(self, pos: int) -> str:
        return self.text[pos : pos + 1]

    def _past_comments(self, pos: int) -> Found:
        while found := _COMMENT.match(self.text, pos):
            yield self._between(pos, "a comment, which JSON does not have")
            pos = self.skip(found.end())
        return pos

    def _element(self, start: int) -> Found:
        """The row that begins at ``start``, good or bad, and where the next thing begins."""
        self.number += 1
        self._lost = False
        line = self._line_of(start)
        try:
            value, end = (parse_near if self._careful else parse_value)(self.text, start)
        except RowRejected as fault:
            self._lost = self._careful = True
            at = start if fault.at is None else fault.at
            end = (value_end(self.text, start) if fault.at is None else None) or self._end_of_broken(start, at)
            shown = self._line_of(at) if at < end else line
            raw = self.text[start:end].rstrip(", \t\r\n")
            yield fault.row(self.name, shown, raw, self.number)
            return max(start + len(raw), start + 1)
        if isinstance(value, dict):
            self._keys.update(value.keys() - INSIDE_ROWS)
            self._first_keys.update(set(list(value)[:1]) - INSIDE_ROWS)
        yield object_or_bad(self.name, line, value, self.text[start:end], self.number)
        return end

    def _line_of(self, pos: int) -> int:
        """The line of ``pos``; counts on from the last one asked for, so that a whole file costs one pass."""
        if pos < self._counted:
            self._line -= self.text.count("\n", pos, self._counted)
        else:
            self._line += self.text.count("\n", self._counted, pos)
        self._counted = pos
        return self._line

    def _between(self, pos: int, reason: str) -> BadRow:
        """A fault that belongs to no row."""
        excerpt = excerpt_at(self.text, pos, ends_here=pos >= len(self.text))
        fault = RowRejected(f"broken JSON: {reason}", excerpt=excerpt)
        return fault.row(self.name, self._line_of(pos), "", between=True)

    def _end_of_broken(self, start: int, fault: int) -> int:
        """Where a broken row ends: in front of the next row, at the bracket that closes it, or at the text's end."""
        opening = _FIRST_KEY.match(self.text, start)
        first = {opening[1]} - INSIDE_ROWS if opening else set()
        following = self._next_row(max(fault, start + 1), self._keys or first, {*self._first_keys, *first})
        closed = self._closing_bracket(start, following)
        return closed if closed is not None else following

    def _closing_bracket(self, start: int, until: int) -> int | None:
        """The position behind the bracket that closes what opens at ``start``, if a row can end there."""
        depth = 0
        for found in _STRING_OR_BRACKET.finditer(self.text, start, until):
            sign = found[0]
            depth += 1 if sign in "{[" else -1 if sign in "}]" else 0
            if depth < 0:  # no bracket was opened: the list itself ends here
                return found.start()
            if depth == 0 and sign in "}]":
                end = found.end()
                return end if self._at(self.skip(end)) in ("", ",", "]", "{", "}") else None
        return None

    def _next_row(self, pos: int, keys: set[str], first_keys: set[str]) -> int:
        """Where the next row begins: an object that has some of ``keys``, or that opens with one of ``first_keys``
        behind another one; the text's end where there is none."""
        while self._search_left > 0 and (pos := self.text.find("{", pos)) >= 0:
            opening = _FIRST_KEY.match(self.text, pos)
            if opening and opening[1] in first_keys and _BEHIND_ROW.search(self.text, max(pos - 100, 0), pos):
                return pos
            end = self._end_of_object(pos, keys)
            if end == pos:
                return pos
            pos = end
        return len(self.text)

    def _end_of_object(self, pos: int, keys: set[str]) -> int:
        """``pos`` itself where a whole row begins there, else where to look on."""
        try:
            value, end = parse_near(self.text, pos)
        except RowRejected as fault:
            tried = (fault.at or pos) if UNCLOSED not in fault.reason else len(self.text)
            self._search_left -= max(tried - pos, COST_OF_A_TRY)
            return pos + 1
        self._search_left -= end - pos
        is_row = bool(keys & value.keys()) if keys else bool(value) and not INSIDE_ROWS & value.keys()
        return pos if is_row else end


class Line(NamedTuple):
    """One line of a text: its number from 1, its own text, and where it begins and ends."""

    number: int
    text: str
    start: int
    end: int


def lines_rows(text: str, name: str) -> Rows:
    """One object per line; blank lines do not count. Lines end at \\n only, never inside a string.

    A row that goes on over more lines is one row, whole or broken.
    """
    passed = 0
    for line in _lines(text):
        if line.start < passed or not line.text.strip(WHITESPACE):
            continue
        row, passed = _row_from(text, name, line)
        yield row


def _lines(text: str) -> Generator[Line, None, None]:
    start, number = 0, 1
    while start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        yield Line(number, text[start:end].rstrip("\r"), start, end)
        start, number = end + 1, number + 1


def _row_from(text: str, name: str, line: Line) -> tuple[Row | BadRow, int]:
    """The row that begins on ``line``, and the position behind its last line."""
    try:
        return object_or_bad(name, line.number, parse_line(line.text), line.text), line.end
    except RowRejected as fault:
        whole = _over_lines(text, line)
        if whole is not None:
            value, end = whole
            return object_or_bad(name, line.number, value, text[line.start : end].strip(WHITESPACE)), end
        end = _end_of_broken_lines(text, line)
        return fault.row(name, line.number, text[line.start : end].rstrip(WHITESPACE)), end


def _over_lines(text: str, line: Line) -> tuple[Any, int] | None:
    """The object that opens on ``line`` and is closed at the end of a later one."""
    start = line.start + len(line.text) - len(line.text.lstrip())
    if text[start : start + 1] != "{":
        return None
    try:
        value, end = parse_near(text, start, ROW_OVER_LINES)
    except RowRejected:
        return None
    rest = text[end : text.find("\n", end) if text.find("\n", end) >= 0 else len(text)]
    return (value, end) if end > line.end and not rest.strip(WHITESPACE) else None


def _end_of_broken_lines(text: str, line: Line) -> int:
    """Lines that do not open a row of their own belong to the broken one above them."""
    if not line.text.lstrip().startswith("{"):
        return line.end
    indent = line.text[: len(line.text) - len(line.text.lstrip())]
    end = line.end
    while end < len(text):
        following = text.find("\n", end + 1)
        following = len(text) if following < 0 else following
        after = text[end + 1 : following]
        if not after.strip(WHITESPACE) or after.startswith((indent + "{", indent + "[")):
            return end
        end = following
    return end


def object_or_bad(name: str, line: int, value: Any, raw: str, number: int = 0) -> Row | BadRow:
    """A JSON value as a row, which only an object can be."""
    if isinstance(value, dict):
        return Row(line, value, raw, number)
    kind = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
    return RowRejected(f"the row is {kind}, not an object {{...}}", fix=_as_object(value)).row(name, line, raw, number)


def _as_object(value: Any) -> str:
    """How a row that is no object could be one."""
    if isinstance(value, str):
        return '{"text": ...}'
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return '{"messages": [...]}'
    pair = isinstance(value, list) and len(value) == 2
    return '{"prompt": ..., "completion": ...}' if pair else "an object with a question and its answer"


def is_line_by_line(text: str) -> bool:
    """Whether every line is a row of its own, as the first ones tell."""
    first, _, rest = text.lstrip(WHITESPACE).partition("\n")
    if first[:1] not in ("{", "["):
        return True
    try:
        value, end = parse_value(first)
    except RowRejected:
        # an object opened on a line by itself is written over several lines, broken or not
        return first.strip(WHITESPACE) != "{" and first[:1] == "{" and not _goes_on(text)
    after = first[end:].strip(WHITESPACE)
    if isinstance(value, list):
        of_rows = bool(value) and isinstance(value[0], dict) and not INSIDE_ROWS & value[0].keys()
        return not after and not of_rows and rest.lstrip(WHITESPACE).startswith("[")
    return not after.startswith((",", "{"))


def _goes_on(text: str) -> bool:
    """Whether the first object is whole and ends on a later line."""
    start = len(text) - len(text.lstrip(WHITESPACE))
    try:
        _, end = parse_value(text, start)
    except RowRejected:
        return False
    return "\n" in text[start:end]
