"""The one way from a recipe to tokenized examples, for the planner and for the trainer."""

import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from qlora_core.data.bad_rows import BadRow, BadRows
from qlora_core.data.chat.chat_tokenizer import ChatTokenizer
from qlora_core.data.chat.tokenizer_source import tokenizer_folder
from qlora_core.data.duplicates import duplicate_notes
from qlora_core.data.examples import TokenizedExample
from qlora_core.data.facts import describe, quantiles, source_facts
from qlora_core.data.lengths.token_counts import TokenCounts
from qlora_core.data.mixture import read_all, without
from qlora_core.data.rendered_rows import rendered_warnings
from qlora_core.data.schema import Conversation, DataSet, Message
from qlora_core.data.split import split
from qlora_core.data.token_ids import check_rows
from qlora_profiles.facts import DataFacts, SourceFacts
from qlora_profiles.settings import Recipe, Run

TEMPLATE_DATE = date(2026, 1, 1)
"""What a template that writes the day sees while training: a run that goes on tomorrow must learn the same."""

ASSUMED_ROWS = 1000
ASSUMED_TOKENS = 400
SUPERVISED_SHARE = 0.6
"""Usual instruction rows: how many, tokens of a middling one, and the supervised part. Set by hand."""

TOKENS_AROUND_MESSAGE = 6
ASCII_LETTERS_PER_TOKEN = 4.0
OTHER_LETTERS_PER_TOKEN = 1.4
"""About what tokenizers of today make of a text: English words, and Chinese. Set by hand, for plans alone."""

Item = TypeVar("Item")


class CountedData(NamedTuple):
    """The rows of a recipe that can be used, how many tokens each has, uncut, and what a plan needs to know of them."""

    dataset: DataSet
    chat: ChatTokenizer
    token_counts: list[TokenCounts]
    facts: DataFacts


class TokenizedData(NamedTuple):
    """A data file in this model's tokens, uncut, in file order."""

    dataset: DataSet
    chat: ChatTokenizer
    examples: list[TokenizedExample]


def tokenize(
    recipe: Recipe, run: Run, progress: Callable[[int, int], None] | None = None, *, embedding_rows: int | None = None
) -> TokenizedData:
    """Read, render and encode the recipe's data; with ``skip_bad_rows``, rows that the template refuses are set aside.

    Raises:
        UserError: the file or the tokenizer cannot be read, the template refuses a row (``BadRows``), or a row has a
            token that an embedding of ``embedding_rows`` lacks.
    """
    dataset, chat, refused = _opened(recipe, run)
    name = Path(dataset.path).name
    examples = chat.encode_all(dataset.conversations, progress=progress, file=name, rejected=refused)
    chat.ask_as_trained()
    dataset, examples = _without(refused, dataset, examples)
    if embedding_rows is not None:
        _check_ids(recipe, dataset, chat, examples, embedding_rows)
    return TokenizedData(dataset, chat, examples)


def read_facts(recipe: Recipe, run: Run, *, embedding_rows: int | None = None) -> DataFacts:
    """What a plan needs to know of the recipe's data; a note says where not all rows were counted.

    Raises:
        UserError: as ``tokenize`` does, and where nothing would be left to train on.
    """
    return count_rows(recipe, run, embedding_rows=embedding_rows).facts


def count_rows(recipe: Recipe, run: Run, *, embedding_rows: int | None = None) -> CountedData:
    """The facts of the recipe's data with the rows that they are of. Raises ``UserError`` as ``read_facts`` does."""
    dataset, chat, refused = _opened(recipe, run)
    name = Path(dataset.path).name
    found = chat.count_tokens(dataset.conversations, recipe.max_length, recipe.seed, file=name, rejected=refused)
    chat.end_as_trained()
    dataset, token_counts = _without(refused, dataset, found.token_counts)
    facts = describe(
        dataset, token_counts, recipe.max_length, tokenizer=chat, val_size=recipe.val_size, seed=recipe.seed
    )
    facts = replace(facts, notes=(*facts.notes, *_unused_tokens(recipe, dataset, chat, embedding_rows)))
    if found.counted < len(found.token_counts):
        note = (
            f"tokens were counted in {found.counted:,} rows, the longest among them; the others are taken to be alike"
        )
        facts = replace(facts, counted_rows=found.counted, notes=(*facts.notes, note))
    return CountedData(dataset, chat, token_counts, facts)


def _unused_tokens(
    recipe: Recipe, dataset: DataSet, chat: ChatTokenizer, embedding_rows: int | None
) -> tuple[str, ...]:
    """A note where the tokenizer has tokens that the embedding lacks: all rows are encoded to see that none has one.

    Raises:
        UserError: one has.
    """
    beyond = chat.tokens_beyond(embedding_rows) if embedding_rows is not None else []
    if not beyond or embedding_rows is None:
        return ()
    _check_ids(recipe, dataset, chat, chat.encode_all(dataset.conversations), embedding_rows)
    count = f"{len(beyond):,} tokens of the tokenizer" if len(beyond) > 1 else "a token of the tokenizer"
    return (f"{count} ({beyond[0]}) has no row among the embedding's {embedding_rows:,}; no row of the data uses it",)


def _check_ids(
    recipe: Recipe, dataset: DataSet, chat: ChatTokenizer, examples: Sequence[TokenizedExample], embedding_rows: int
) -> None:
    kept = (example.input_ids[: recipe.max_length] for example in examples)
    name = Path(dataset.path).name
    places = (f"{row.file or name}, row {row.line}" for row in dataset.conversations)
    check_rows(zip(places, kept, strict=True), embedding_rows, chat)


def _opened(recipe: Recipe, run: Run) -> tuple[DataSet, ChatTokenizer, list[BadRow] | None]:
    """The rows, the tokenizer, and where to put rows that the template refuses: ``None`` where that is an error."""
    dataset = read_all(recipe)
    chat = ChatTokenizer.from_folder(tokenizer_folder(recipe, run), recipe.chat_template, today=TEMPLATE_DATE)
    warnings = [*dataset.warnings, *rendered_warnings(dataset.conversations, chat.special_tokens)]
    return replace(dataset, warnings=warnings), chat, [] if recipe.skip_bad_rows else None


def _without(refused: Sequence[BadRow] | None, dataset: DataSet, examples: list[Item]) -> tuple[DataSet, list[Item]]:
    """The rows that are left, and the refused ones among those set aside."""
    if not refused:
        return dataset, examples
    places = {(row.file, row.line, row.number) for row in refused}
    name = Path(dataset.path).name
    pairs = zip(dataset.conversations, examples, strict=True)
    kept = [pair for pair in pairs if (pair[0].file or name, pair[0].line, pair[0].number) not in places]
    order = {file: number for number, file in enumerate(dict.fromkeys(row.file for row in dataset.conversations))}
    rejected = [*dataset.rejected, *refused]
    rejected.sort(key=lambda row: (order.get(row.file, 0), row.number, row.line))
    if not kept:
        raise BadRows(rejected, len(rejected))
    return without(dataset, [row for row, _ in kept], rejected), [example for _, example in kept]


def estimated_facts(recipe: Recipe) -> DataFacts:
    """Facts of real rows for a model whose tokenizer is not on this disk: tokens are guessed from the letters.

    Raises:
        UserError: the file or rows of it cannot be read, or ``val_size`` leaves no row to train on.
    """
    dataset = read_all(recipe)
    lengths = sorted(guessed_tokens(row) for row in dataset.conversations)
    train, held_out = split(lengths, recipe.val_size, recipe.seed)
    mean = sum(min(tokens, recipe.max_length) for tokens in train) / len(train)
    return replace(
        assumed_facts(recipe.max_length),
        sources=dataset.sources or (source_facts(dataset),),
        rows=len(lengths),
        train_rows=len(train),
        held_out_rows=len(held_out),
        rows_rejected=len(dataset.rejected),
        rows_cut=sum(tokens > recipe.max_length for tokens in lengths),
        longest_tokens=lengths[-1],
        mean_tokens=mean,
        mean_supervised_tokens=SUPERVISED_SHARE * mean,
        length_quantiles=quantiles(train),
        warnings=(*dataset.warnings, *rendered_warnings(dataset.conversations)),
        notes=(
            *dataset.notes,
            *duplicate_notes(dataset.conversations, recipe.val_size, recipe.seed),
            "tokens are guessed from the letters: the model's tokenizer is not on this disk yet",
        ),
    )


def guessed_tokens(row: Conversation) -> int:
    """About how many tokens a row has in any tokenizer of today."""
    texts = [_all_text(message) for message in row.messages] or [row.text or ""]
    texts += [json.dumps(tool, ensure_ascii=False) for tool in row.tools]
    letters = sum(map(len, texts))
    plain = sum(len(text.encode("ascii", "ignore")) for text in texts)
    guess = plain / ASCII_LETTERS_PER_TOKEN + (letters - plain) / OTHER_LETTERS_PER_TOKEN
    return round(guess) + TOKENS_AROUND_MESSAGE * len(texts)


def _all_text(message: Message) -> str:
    """What a template writes of a message: reasoning and calls, too."""
    calls = (json.dumps(call, ensure_ascii=False) for call in message.tool_calls)
    return "".join((message.reasoning or "", message.content, *calls))


def assumed_facts(longest_tokens: int) -> DataFacts:
    """Facts of no data at all, for a plan before there is any: usual instruction rows, some of them long."""
    mean = float(min(ASSUMED_TOKENS, longest_tokens))
    no_source = SourceFacts(
        path="no data yet",
        fingerprint="",
        file_format="assumed",
        row_shape="messages",
        rows=ASSUMED_ROWS,
        rows_rejected=0,
    )
    return DataFacts(
        sources=(no_source,),
        rows=ASSUMED_ROWS,
        train_rows=ASSUMED_ROWS,
        longest_tokens=longest_tokens,
        mean_tokens=mean,
        mean_supervised_tokens=SUPERVISED_SHARE * mean,
        length_quantiles=tuple(min(longest_tokens, ASSUMED_TOKENS * tenth // 5 + 1) for tenth in range(11)),
        template="chatml",
        stop_token="end of turn",
        exact=False,
        notes=(f"no --data: planned for {ASSUMED_ROWS:,} usual rows, the longest of {longest_tokens:,} tokens",),
        held_out_rows=0,
        rows_rejected=0,
        rows_cut=0,
        rows_dropped=0,
    )
