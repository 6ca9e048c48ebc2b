"""Tokens that a model has no embedding for: a tokenizer may have more than the model's embedding has rows."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from qlora_profiles.errors import UserError

FIX = "the tokenizer files that the model came with"


class Decoder(Protocol):
    """What tells the token of an id."""

    def token_of(self, number: int) -> str:
        """Its text."""


def check_ids(ids: Sequence[int], embedding_rows: int, tokens: Decoder, where: str) -> None:
    """Nothing, where the embedding has a row for each of ``ids``.

    Raises:
        UserError: names the token, its id and how many rows there are.
    """
    highest = max(ids, default=0)
    if highest >= embedding_rows:
        said = f"token {tokens.token_of(highest)!r} has id {highest:,}, the model's embedding {embedding_rows:,} rows"
        raise UserError(f"{where}: {said}", FIX)


def check_rows(rows: Iterable[tuple[str, Sequence[int]]], embedding_rows: int, tokens: Decoder) -> None:
    """The same for rows, each with the place that it is told by."""
    for place, ids in rows:
        check_ids(ids, embedding_rows, tokens, place)
