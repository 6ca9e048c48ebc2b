"""Rows that stand more than once in the data."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from qlora_core.data.schema import Conversation
from qlora_core.data.split import split


class Duplicates(NamedTuple):
    """Of ``rows`` so many equal an earlier one (``again``), and of the ``held_out`` ones so many are trained on as well
    (``leaked``)."""

    rows: int
    again: int
    held_out: int
    leaked: int

    def notes(self) -> list[str]:
        """The same in sentences; none where no row stands twice."""
        told = []
        if self.again:
            told.append(f"rows that stand in the data once more, to the letter: {self.again:,} of {self.rows:,}")
        if self.leaked:
            of = f"{self.leaked:,} of {self.held_out:,}"
            told.append(f"held-out rows that are trained on as well: {of}; their loss flatters")
        return told


def find_duplicates(conversations: Iterable[Conversation], val_size: float, seed: int) -> Duplicates:
    """Rows that equal others in all that is learned of them.

    Raises:
        UserError: ``val_size`` leaves no row to train on.
    """
    keys = [_key(conversation) for conversation in conversations]
    again = len(keys) - len(set(keys))
    train, held_out = split(keys, val_size, seed)
    return Duplicates(len(keys), again, len(held_out), _count_in(held_out, set(train)) if again else 0)


def duplicate_notes(conversations: Iterable[Conversation], val_size: float, seed: int) -> list[str]:
    """How many rows equal an earlier one in all that is learned of them, and how many of the held-out rows are trained
    on as well. Raises as ``find_duplicates``."""
    return find_duplicates(conversations, val_size, seed).notes()


def _count_in(keys: Sequence[bytes], others: set[bytes]) -> int:
    return sum(key in others for key in keys)


def _key(conversation: Conversation) -> bytes:
    said = (conversation.messages, conversation.tools, conversation.text)
    try:
        content = msgspec.msgpack.encode(said)
    except (ValueError, OverflowError):  # half a character, or a number of more than 64 bits
        content = repr(said).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()
