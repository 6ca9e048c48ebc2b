"""Asking for a fact that may not be there: the value, or ``None`` and the reason in words."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Unknowable(Exception):
    """A fact that this machine does not tell; the message is the reason that a person reads."""


class Notes:
    """The reasons gathered during one survey, keyed by the dotted name of the report's field.

    A key without a position (``"gpus.index"``) speaks of every card, one that names a group of fields of all of it.
    A reason under a field that has a value says why the value may be off.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def ask(self, reader: Callable[[], T], *fields: str) -> T | None:
        """What ``reader`` returns; when it raises, ``None``, and the reason is kept under each of ``fields``."""
        try:
            return reader()
        except Exception as error:  # drivers, drivers' bindings and half-mounted systems raise anything
            for name in fields:
                self.add(name, why(error))
            return None

    def add(self, field: str, reason: str | None) -> None:
        """Keep a reason that is already known, beside those kept before; ``None`` says nothing."""
        known = self.reasons.get(field)
        if reason is not None and reason != known:
            self.reasons[field] = f"{known}; {reason}" if known else reason


def why(error: Exception) -> str:
    """The error as one line for a person."""
    if isinstance(error, Unknowable):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
