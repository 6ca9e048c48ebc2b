"""What would be learned of a data set, for a person to look at before any training: rows in full, counts of all."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from msgspec import Struct

from qlora_core.data.answers import Answers, measure_answers
from qlora_core.data.chat.chat_tokenizer import ChatTokenizer
from qlora_core.data.duplicates import find_duplicates
from qlora_core.data.facts import quantiles, source_facts
from qlora_core.data.lengths.histogram import Bin, histogram
from qlora_core.data.lengths.token_counts import TokenCounts
from qlora_core.data.mixture import read_all
from qlora_core.data.pipeline import count_rows
from qlora_core.data.rendered_rows import rendered_warnings
from qlora_core.data.sample_rows import pick_rows
from qlora_core.data.schema import Conversation, DataSet
from qlora_core.data.split import split
from qlora_profiles.facts import SourceFacts
from qlora_profiles.settings import Recipe, Run

Kind = Literal["given", "learned", "cut"]
SET_ASIDE_SHOWN = 100
"""Rows set aside that are told one by one; all are counted."""
DECODED_BEFORE = 16
"""Tokens in front of a stretch that are decoded with it: how a token reads may hang on those before it."""
HALF = "\N{REPLACEMENT CHARACTER}"
"""What tokens read as that hold a part of a character."""
NO_MODEL = "no --model: rows are shown as messages, and lengths in letters; with --model as its template writes them"


class Piece(Struct, frozen=True, kw_only=True):
    """A stretch of a row: ``given`` to the model, ``learned``, or ``cut`` off behind the longest length.

    ``role`` says whose words they are where no template writes it.
    """

    kind: Kind
    text: str
    role: str = ""


class ShownRow(Struct, frozen=True, kw_only=True):
    """A row in full. ``row`` counts from 1 among those that can be used, ``line`` and ``number`` in the file.

    ``why`` says what it stands for: first, longest, shortest, random. ``length`` and ``learned`` are in the lengths'
    unit, before cutting.
    """

    row: int
    line: int
    number: int
    why: tuple[str, ...]
    held_out: bool
    length: int
    learned: int
    pieces: tuple[Piece, ...]


class Lengths(Struct, frozen=True, kw_only=True):
    """Lengths of all rows before cutting; ``quantiles`` are the 0, 10, ... 100th percentiles.

    ``counted_rows`` says in how many rows tokens were counted where it is not in all.
    """

    unit: Literal["tokens", "letters"]
    mean: float
    quantiles: tuple[int, ...]
    histogram: tuple[Bin, ...]
    counted_rows: int | None = None


class Cuts(Struct, frozen=True, kw_only=True):
    """What the longest length takes away: rows that lose something, rows that lose all that is learned, and the
    supervised tokens that are lost, of how many."""

    max_length: int
    rows: int
    rows_dropped: int
    learned_lost: int
    learned: int


class DuplicateRows(Struct, frozen=True, kw_only=True):
    """Rows that equal an earlier one, and held-out rows that are trained on as well."""

    rows: int
    held_out: int


class SetAside(Struct, frozen=True, kw_only=True):
    """A row that cannot be used, and why."""

    file: str
    line: int
    number: int
    reason: str
    fix: str


class Inspection(Struct, frozen=True, kw_only=True):
    """A data set as it would be learned. Without a model ``template``, ``stop_token`` and ``cuts`` are ``None``.

    ``rows`` can be used; ``rows_set_aside`` cannot, and ``set_aside`` holds the first of them. ``learned_share`` is the
    share of tokens (of letters, without a model) that count in the loss.
    """

    model: str | None
    sources: tuple[SourceFacts, ...]
    rows: int
    train_rows: int
    held_out_rows: int
    rows_set_aside: int
    set_aside: tuple[SetAside, ...]
    columns_used: tuple[str, ...]
    columns_not_used: tuple[str, ...]
    template: str | None
    learned: str
    stop_token: str | None
    learned_share: float
    lengths: Lengths
    cuts: Cuts | None
    duplicates: DuplicateRows
    answers: Answers
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    shown: tuple[ShownRow, ...]


def inspect_rows(recipe: Recipe, run: Run, shown_rows: int, *, embedding_rows: int | None = None) -> Inspection:
    """The recipe's data as its model would learn it, with ``shown_rows`` rows in full.

    Raises:
        UserError: as ``read_facts``.
    """
    data = count_rows(recipe, run, embedding_rows=embedding_rows)
    facts, counts = data.facts, data.token_counts
    lengths = [one.tokens for one in counts]
    found = find_duplicates(data.dataset.conversations, recipe.val_size, recipe.seed)
    return Inspection(
        model=recipe.model,
        sources=facts.sources,
        train_rows=facts.train_rows,
        held_out_rows=facts.held_out_rows,
        template=facts.template,
        learned=facts.learned,
        stop_token=facts.stop_token,
        learned_share=facts.mean_supervised_tokens / facts.mean_tokens,
        lengths=_lengths("tokens", lengths, facts.counted_rows),
        cuts=_cuts(counts, recipe.max_length),
        duplicates=DuplicateRows(rows=found.again, held_out=found.leaked),
        warnings=facts.warnings,
        notes=tuple(note for note in facts.notes if note not in found.notes()),
        shown=_shown(data.dataset.conversations, lengths, recipe, shown_rows, data.chat),
        **_of_rows(data.dataset),
    )


def inspect_messages(recipe: Recipe, shown_rows: int) -> Inspection:
    """The recipe's data as far as it can be known without a tokenizer.

    Raises:
        UserError: the data cannot be read, or ``val_size`` leaves no row to train on.
    """
    dataset = read_all(recipe)
    rows = dataset.conversations
    lengths = [_letters(_pieces_of(row)) for row in rows]
    learned = sum(_letters(_pieces_of(row), "learned") for row in rows)
    found = find_duplicates(rows, recipe.val_size, recipe.seed)
    return Inspection(
        model=None,
        sources=dataset.sources or (source_facts(dataset),),
        train_rows=found.rows - found.held_out,
        held_out_rows=found.held_out,
        template=None,
        learned="",
        stop_token=None,
        learned_share=learned / sum(lengths),
        lengths=_lengths("letters", lengths),
        cuts=None,
        duplicates=DuplicateRows(rows=found.again, held_out=found.leaked),
        warnings=(*dataset.warnings, *rendered_warnings(rows)),
        notes=(*dataset.notes, NO_MODEL),
        shown=_shown(rows, lengths, recipe, shown_rows, None),
        **_of_rows(dataset),
    )


def _of_rows(dataset: DataSet) -> dict[str, Any]:
    """The parts of an inspection that no tokenizer has a say in."""
    first = dataset.rejected[:SET_ASIDE_SHOWN]
    return {
        "rows": len(dataset.conversations),
        "rows_set_aside": len(dataset.rejected),
        "set_aside": tuple(
            SetAside(file=row.file, line=row.line, number=row.number, reason=row.reason, fix=row.fix) for row in first
        ),
        "columns_used": tuple(dataset.columns_used),
        "columns_not_used": tuple(dataset.columns_not_used),
        "answers": measure_answers(dataset.conversations),
    }


def _lengths(unit: Literal["tokens", "letters"], lengths: Sequence[int], counted: int | None = None) -> Lengths:
    ordered = sorted(lengths)
    return Lengths(
        unit=unit,
        mean=sum(ordered) / len(ordered),
        quantiles=quantiles(ordered),
        histogram=histogram(ordered),
        counted_rows=counted,
    )


def _cuts(counts: Sequence[TokenCounts], max_length: int) -> Cuts:
    learned = sum(end - start for one in counts for start, end in one.supervised)
    kept = [one.supervised_within(max_length) for one in counts]
    return Cuts(
        max_length=max_length,
        rows=sum(one.tokens > max_length for one in counts),
        rows_dropped=kept.count(0),
        learned_lost=learned - sum(kept),
        learned=learned,
    )


def _shown(
    rows: Sequence[Conversation], lengths: Sequence[int], recipe: Recipe, wanted: int, chat: ChatTokenizer | None
) -> tuple[ShownRow, ...]:
    held_out = set(split(range(len(rows)), recipe.val_size, recipe.seed)[1])
    picked = pick_rows(lengths, wanted, recipe.seed)
    return tuple(
        _shown_row(rows[index], index, why, index in held_out, chat, recipe.max_length) for index, why in picked.items()
    )


def _shown_row(
    row: Conversation, index: int, why: tuple[str, ...], held_out: bool, chat: ChatTokenizer | None, max_length: int
) -> ShownRow:
    if chat is None:
        pieces = _pieces_of(row)
        length, learned = _letters(pieces), _letters(pieces, "learned")
    else:
        example = chat.encode(row)
        pieces = decoded_pieces(chat, example.input_ids, example.segments(), max_length)
        length, learned = len(example.input_ids), example.supervised_tokens
    return ShownRow(
        row=index + 1,
        line=row.line,
        number=row.number,
        why=why,
        held_out=held_out,
        length=length,
        learned=learned,
        pieces=pieces,
    )


def decoded_pieces(
    chat: ChatTokenizer, ids: Sequence[int], segments: Iterable[tuple[bool, int, int]], max_length: int
) -> tuple[Piece, ...]:
    """The text of stretches of tokens (supervised, start, end), one behind the other the text of all of them."""
    pieces = []
    for supervised, start, end in segments:
        kept = max(start, min(end, max_length))
        kind: Kind = "learned" if supervised else "given"
        bounds: list[tuple[Kind, int, int]] = [(kind, start, kept), ("cut", kept, end)]
        pieces += [Piece(kind=kind, text=_decoded(chat, ids, a, b)) for kind, a, b in bounds if a < b]
    return _joined(pieces)


def _joined(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Stretches of one kind that follow each other as one: all that is cut is shown as a whole."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].kind == piece.kind:
            piece = Piece(kind=piece.kind, text=joined.pop().text + piece.text)
        joined.append(piece)
    return tuple(joined)


def _decoded(chat: ChatTokenizer, ids: Sequence[int], start: int, end: int) -> str:
    """What the tokens [start, end) add to the text; a character that ends behind them belongs to what follows."""
    before, lead = _lead(chat, ids, start)
    text = chat.decode(ids[before:end], skip_special_tokens=False)
    text = text if end == len(ids) else text.rstrip(HALF)
    return text[len(lead) :] if text.startswith(lead) else chat.decode(ids[start:end], skip_special_tokens=False)


def _lead(chat: ChatTokenizer, ids: Sequence[int], start: int) -> tuple[int, str]:
    """Where to begin to decode, not inside a character, and the text from there to ``start``."""
    before = max(0, start - DECODED_BEFORE)
    lead = chat.decode(ids[before:start], skip_special_tokens=False)
    while before and lead.startswith(HALF):
        before = max(0, 2 * before - start)
        lead = chat.decode(ids[before:start], skip_special_tokens=False)
    return before, lead.rstrip(HALF)


def _pieces_of(row: Conversation) -> tuple[Piece, ...]:
    """A row as it was read, without a template."""
    if row.text is not None:
        return (Piece(kind="learned", text=row.text, role="text"),)
    pieces = [Piece(kind="given", text=_json(tool), role="tools") for tool in row.tools]
    for message in row.messages:
        kind: Kind = "learned" if message.supervised else "given"
        parts = [("reasoning", message.reasoning or ""), ("", message.content)]
        parts += [("calls", _json(call)) for call in message.tool_calls]
        pieces += [Piece(kind=kind, text=text, role=f"{message.role} {what}".rstrip()) for what, text in parts if text]
    return tuple(pieces)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _letters(pieces: Iterable[Piece], kind: Kind | None = None) -> int:
    return sum(len(piece.text) for piece in pieces if kind is None or piece.kind == kind)
