"""Rows that stand more than once in the data."""

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from qlora_core.data.schema import Conversation
from qlora_core.data.split import split


def duplicate_notes(conversations: Iterable[Conversation], val_size: float, seed: int) -> list[str]:
    """How many rows equal an earlier one in all that is learned of them, and how many of the held-out rows are trained
    on as well."""
    keys = [_key(conversation) for conversation in conversations]
    again = len(keys) - len(set(keys))
    if not again:
        return []
    train, held_out = split(keys, val_size, seed)
    told = [f"rows that stand in the data once more, to the letter: {again:,} of {len(keys):,}"]
    leaked = _count_in(held_out, set(train))
    if leaked:
        told.append(f"held-out rows that are trained on as well: {leaked:,} of {len(held_out):,}; their loss flatters")
    return told


def _count_in(keys: Sequence[bytes], others: set[bytes]) -> int:
    return sum(key in others for key in keys)


def _key(conversation: Conversation) -> bytes:
    said = (conversation.messages, conversation.tools, conversation.text)
    try:
        content = msgspec.msgpack.encode(said)
    except (ValueError, OverflowError):  # half a character, or a number of more than 64 bits
        content = repr(said).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()
