"""Foreign text on a terminal: what would steer it is spelled out instead."""

import re

_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and line break, both separators of lines and paragraphs, and what turns the direction
of writing (a bidirectional override shows other words than are there). Halves of characters, which no encoding has."""


def visible(text: str) -> str:
    """``text`` with control characters as ``\\x1b`` or ``\\u202e``; tabs and line breaks stay."""
    return _STEERING.sub(_spelled, text.replace("\r\n", "\n"))


def visible_json(text: str) -> str:
    """JSON that says the same and steers no terminal: JSON itself lets DEL and everything above it stand raw."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def on_one_line(text: str) -> str:
    """``text`` as ``visible``, its tabs and line breaks spelled out too."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
