"""How many tokens rows have and which are learned, counted without keeping the tokens: what a plan needs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from qlora_core.data.encoded import Encoded, Rendered, first_inside, last_inside
from qlora_core.data.pieces import Cutter

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Span = tuple[int, int]
MOST_NEW_AT_FIRST, MOST_NEW = 0.5, 0.25
"""Shares of words not met before, of the first rows and of later ones, above which whole texts encode faster."""


class Extent(Struct, frozen=True):
    """The length of one example in ``tokens``, and the stretches [start, end) of tokens that are learned, in order."""

    tokens: int
    learned: tuple[Span, ...]

    @classmethod
    def of(cls, encoded: Encoded) -> "Extent":
        """The extent of an example in tokens."""
        return cls(len(encoded.input_ids), tuple((start, end) for learned, start, end in encoded.runs() if learned))

    def learned_within(self, max_length: int) -> int:
        """Number of learned tokens among the first ``max_length``."""
        return sum(max(0, min(end, max_length) - start) for start, end in self.learned)


class _Part(NamedTuple):
    """A part of a row's text: a piece from the character ``start`` on, and the words behind it.

    ``chars`` are those ends of the row's spans that lie in the piece; none lies in the words.
    """

    start: int
    piece: str
    chars: list[int]
    words: list[str]


class Meter:
    """Measures rows. Where the tokenizer allows, texts are cut into words, each of which is encoded only once."""

    def __init__(self, tokenizer: "Tokenizer", stop_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._cutter = Cutter.of(tokenizer)
        self._counts: dict[str, int] = {}

    def extents(self, rows: Sequence[Rendered]) -> list[Extent]:
        """The extents of some rows, in order."""
        cut = self._cut_all(rows)
        parts = cut or [[_Part(0, row.text, _ends(row), [])] for row in rows]
        pieces = list({part.piece: None for row in parts for part in row})
        encodings = self._tokenizer.encode_batch(pieces, add_special_tokens=False)
        encoded = dict(zip(pieces, encodings, strict=True))
        return [self._extent(row.whole, found, encoded) for row, found in zip(rows, parts, strict=True)]

    def _cut_all(self, rows: Sequence[Rendered]) -> list[list[_Part]] | None:
        """The rows in parts of counted words; ``None`` where they cannot be cut, or too few words come again."""
        if self._cutter is None:
            return None
        parts = [_parts(self._cutter, row) for row in rows]
        words = [part.words for row in parts for part in row]
        new = list(set().union(*words).difference(self._counts))
        if len(new) > (MOST_NEW if self._counts else MOST_NEW_AT_FIRST) * sum(map(len, words)):
            return None
        encodings = self._tokenizer.encode_batch_fast([f" {word}" for word in new], add_special_tokens=False)
        self._counts.update(zip(new, map(len, encodings), strict=True))
        return parts

    def _extent(self, whole: bool, parts: Sequence[_Part], encoded: "dict[str, Encoding]") -> Extent:
        tokens, ends = 0, list[int]()
        for part in parts:
            piece = encoded[part.piece]
            if part.chars:
                ends += [tokens + end for end in self._ends_inside(part, piece, first=len(ends))]
            tokens += len(piece) + sum(map(self._counts.__getitem__, part.words))
        spans = [(start, max(start, end)) for start, end in zip(ends[::2], ends[1::2], strict=True)]
        return Extent(tokens, _learned(spans, tokens, whole))

    def _ends_inside(self, part: _Part, piece: "Encoding", first: int) -> list[int]:
        """The tokens of a piece that spans begin with, or end behind; the first is the row's end number ``first``."""
        offsets, ids = piece.offsets, piece.ids
        inside = (first_inside, last_inside)
        return [
            inside[number % 2](char - part.start, offsets, ids, self._stop_ids)
            for number, char in enumerate(part.chars, first)
        ]


def _ends(row: Rendered) -> list[int]:
    """Where the row's spans begin and end, in turn."""
    return [char for span in row.spans for char in span]


def _parts(cutter: Cutter, row: Rendered) -> list[_Part]:
    """A row's text in parts: one from its beginning, and one from each piece in which a span begins or ends."""
    pieces: list[tuple[int, int, list[int]]] = [(*cutter.piece_at(row.text, 0), [])]
    for char in _ends(row):
        if char >= pieces[-1][1]:
            pieces.append((*cutter.piece_at(row.text, char), []))
        pieces[-1][2].append(char)
    parts = []
    for (start, end, chars), until in zip(pieces, [*(piece[0] for piece in pieces[1:]), len(row.text)], strict=True):
        words = cutter.words(row.text[end:until]) if end < until else []
        parts.append(_Part(start, row.text[start:end], chars, words))
    return parts


def _learned(spans: Sequence[Span], tokens: int, whole: bool) -> tuple[Span, ...]:
    """What is learned of so many tokens: the spans, or all but them; never the first token, and no empty stretch."""
    if whole:
        bounds = [0, *(bound for span in spans for bound in span), tokens]
        spans = list(zip(bounds[::2], bounds[1::2], strict=True))
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        if max(1, start) < end:
            joined.append((max(1, start), end))
    return tuple(joined)
