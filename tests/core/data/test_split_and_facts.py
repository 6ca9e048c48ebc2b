"""Held-out rows, and what a plan is told of a data set."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core.data import (
    ChatTokenizer,
    Conversation,
    DataSet,
    TokenCounts,
    TokenizedExample,
    coverage,
    describe,
    held_out_rows,
    quantiles,
    row_lengths,
    split,
    truncate_all,
)
from qlora_core.data.facts import check_any_supervised
from qlora_profiles.errors import UserError

Folder = Callable[..., Path]
Read = Callable[..., DataSet]
ConversationMaker = Callable[..., Conversation]


@pytest.mark.parametrize(
    ("rows", "val_size", "held"),
    [
        (100, 0, 0),
        (100, 0.05, 5),
        (101, 0.05, 6),
        (10, 0.001, 1),
        (9, 0.5, 0),
        (100_000, 0.05, 200),
        (9, 3, 3),
        (100_000, 500, 500),
    ],
)
def test_how_many_rows_are_held_out(rows: int, val_size: float, held: int) -> None:
    assert held_out_rows(rows, val_size) == held


@pytest.mark.parametrize(
    ("rows", "val_size", "message"),
    [
        (5, 5, "--val-size 5: nothing to train on is left of 5 rows  -> --val-size 0"),
        (40, 90, "--val-size 90: nothing to train on is left of 40 rows  -> --val-size 4"),
        (50, -0.1, "--val-size -0.1: want a share below 1, or a whole number of rows"),
        (50, 1.5, "--val-size 1.5: want a share below 1, or a whole number of rows"),
    ],
)
def test_sizes_that_cannot_be_held_out(rows: int, val_size: float, message: str) -> None:
    with pytest.raises(UserError) as caught:
        split(range(rows), val_size, 42)
    assert str(caught.value).startswith(message)


def test_the_seed_decides_which_rows() -> None:
    assert split(range(50), 5, 1) == split(range(50), 5, 1)
    assert split(range(50), 5, 1)[1] != split(range(50), 5, 2)[1]
    assert split(range(50), 5, 42)[1] == [1, 7, 17, 40, 47]


def example(length: int, first_supervised: int) -> TokenizedExample:
    return TokenizedExample(input_ids=[0] * length, supervised=[index >= first_supervised for index in range(length)])


def counts(length: int, first_supervised: int) -> TokenCounts:
    return TokenCounts.of(example(length, first_supervised))


def test_cutting_drops_what_teaches_nothing() -> None:
    kept, dropped = truncate_all([example(10, 2), example(10, 6), example(4, 2)], 6)
    assert [len(one.input_ids) for one in kept] == [6, 4]
    assert [one.truncated for one in kept] == [True, False]
    assert dropped == 1


def test_lengths_quantiles_and_coverage() -> None:
    ordered = row_lengths(counts(length, 0) for length in (30, 10, 20, 40))
    assert ordered == [10, 20, 30, 40]
    assert [coverage(ordered, limit) for limit in (9, 10, 25, 40)] == [0, 0.25, 0.5, 1]
    assert quantiles(ordered) == (10, 20, 20, 20, 30, 30, 30, 40, 40, 40, 40)
    assert quantiles([7]) == (7,) * 11


def test_a_length_that_leaves_nothing_to_learn_names_one_that_does() -> None:
    with pytest.raises(UserError) as caught:
        check_any_supervised([counts(100, 60), counts(90, 70)], 50)
    assert str(caught.value) == (
        "--max-length 50: every answer begins after that (the first at token 61)  -> --max-length 100 (the longest row)"
    )
    check_any_supervised([counts(100, 60)], 61)
    with pytest.raises(UserError, match="no token of this data would be learned"):
        check_any_supervised([counts(5, 5)], 50)


def test_facts_of_a_data_set(model_folder: Folder, read: Read) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    rows: list[Any] = [{"prompt": "Hi", "completion": "Hello " * n, "id": n} for n in range(1, 21)]
    lines = [*map(json.dumps, rows), "{broken"]
    data = read("my.jsonl", "\n".join(lines), skip_bad_rows=True)
    examples = tokenizer.encode_all(data.conversations)
    sizes = [len(one.input_ids) for one in examples]
    limit = sizes[14]
    token_counts = tokenizer.count_tokens(data.conversations, limit).token_counts
    facts = describe(data, token_counts, limit, tokenizer=tokenizer, val_size=0.1, seed=7)
    train, held = split(examples, 0.1, 7)
    kept, _ = truncate_all(train, limit)
    assert (facts.rows, facts.train_rows, facts.held_out_rows, facts.rows_rejected) == (20, 18, len(held), 1)
    assert (facts.rows_cut, facts.rows_dropped, facts.longest_tokens) == (5, 0, max(sizes))
    assert facts.mean_tokens == pytest.approx(sum(len(one.input_ids) for one in kept) / 18)
    assert facts.mean_supervised_tokens == pytest.approx(sum(one.supervised_tokens for one in kept) / 18)
    assert facts.length_quantiles == quantiles(sorted(len(one.input_ids) for one in train))
    assert (facts.template, facts.stop_token) == ("chatml", "<|im_end|>")
    (source,) = facts.sources
    assert (source.file_format, source.row_shape) == ("JSONL", "prompt/completion")
    assert facts.fingerprint == source.fingerprint == data.fingerprint
    assert facts.notes == ('columns not used: "id"',)


def test_rows_without_anything_to_learn_are_counted_as_dropped(
    model_folder: Folder, conversation_of: ConversationMaker, read: Read
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    long = json.dumps({"prompt": "very long question " * 20, "completion": "x"})
    data = read("my.jsonl", "\n".join([long, json.dumps({"prompt": "Hi", "completion": "Hello"})]))
    facts = describe(data, tokenizer.count_tokens(data.conversations, 40).token_counts, 40, tokenizer=tokenizer)
    assert (facts.rows, facts.rows_cut, facts.rows_dropped) == (2, 1, 1)
    with pytest.raises(UserError, match="--max-length 3: every answer begins after that"):
        describe(data, tokenizer.count_tokens(data.conversations, 40).token_counts, 3, tokenizer=tokenizer)


def test_rows_to_train_on_must_teach_something_whatever_is_held_out(model_folder: Folder, read: Read) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    held = set(split(range(10), 2, 42)[1])
    questions = ["Hi" if number in held else "very long question " * 20 for number in range(10)]
    data = read("my.jsonl", "\n".join(json.dumps({"prompt": text, "completion": "x"}) for text in questions))
    token_counts = tokenizer.count_tokens(data.conversations, 40).token_counts
    with pytest.raises(UserError, match="--max-length 40: every answer begins after that"):
        describe(data, token_counts, 40, tokenizer=tokenizer, val_size=2, seed=42)
    assert describe(data, token_counts, 40, tokenizer=tokenizer).rows_dropped == 8
