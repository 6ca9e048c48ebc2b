"""What is told of rows before they are learned: empty cells, duplicates, rendered templates."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_core.data import BadRows, Conversation, DataSet, Message
from qlora_core.data.duplicates import duplicate_notes
from qlora_core.data.pipeline import read_facts, tokenize
from qlora_core.data.rendered_rows import rendered_warnings
from qlora_profiles.settings import Recipe, Run

Read = Callable[..., DataSet]


def test_cells_without_a_value_are_empty_and_counted(read: Read) -> None:
    text = "instruction,input,output\nName a colour.,nan,Red.\nAdd.,2 and 3,5\nSay it.,<NA>,None\nSay nothing,,NaN\n"
    with pytest.raises(
        BadRows, match=r'my.csv:5  "output" is empty: nothing to learn \("output" is NaN: read as empty\)'
    ):
        read("my.csv", text)
    data = read("my.csv", text, skip_bad_rows=True)
    assert [row.messages[0].content for row in data.conversations] == ["Name a colour.", "Add.\n2 and 3", "Say it."]
    assert data.notes == [
        'cells without a value, read as empty: "nan" 1, "<NA>" 1, "NaN" 1',
        'answers, which are learned, that look like empty cells: "None" 1',
    ]


def test_a_text_that_merely_speaks_of_nan_stays(read: Read) -> None:
    data = read("my.jsonl", json.dumps({"prompt": "What is nan?", "completion": "nan is no number"}))
    assert data.conversations[0].messages[1].content == "nan is no number"
    assert data.notes == []


def pair(asked: str, answer: str) -> Conversation:
    return Conversation(
        line=1,
        messages=(Message(role="user", content=asked), Message(role="assistant", content=answer, supervised=True)),
    )


def test_duplicates_are_counted_also_across_the_split() -> None:
    different = [pair(f"Say {n}.", str(n)) for n in range(20)]
    assert duplicate_notes(different, 0.1, 42) == []
    twice = duplicate_notes([*different, *different], 0.1, 42)
    assert twice[0] == "rows that stand in the data once more, to the letter: 20 of 40"
    assert "held-out rows that are trained on as well" in twice[1]
    assert len(duplicate_notes([*different, *different], 0, 42)) == 1


@pytest.mark.parametrize(
    ("content", "mark"),
    [
        ("<|im_start|>user\nHi<|im_end|>", "<|im_end|>"),
        ("[INST] Hi [/INST]", "[INST]"),
        ("<start_of_turn>user\nHi<end_of_turn>", "<start_of_turn>"),
        ("<|user|>\nHi", "<|user|>"),
        ("<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>"),
        ("### Instruction:\nHi\n\n### Response:\n", "### Instruction:"),
        ("<｜User｜>Hi", "<｜User｜>"),
        ("Hi</own_end>", "</own_end>"),
    ],
)
def test_a_rendered_template_is_told_loudly(content: str, mark: str) -> None:
    (warning,) = rendered_warnings([pair(content, "Hello"), pair("Hi", "<b>[1]</b> ###")], ["</own_end>"])
    assert warning.startswith("1 row holds a rendered template already")
    assert mark in warning
    assert rendered_warnings([pair("Hi <b>", "[INSTALL] ### Instruction: none")]) == []


def test_a_row_that_the_template_refuses_takes_no_neighbour_along(
    model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    messages = [[{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": "Yes."}] for n in range(20)]
    messages[7].insert(0, messages[7][1])  # Gemma's turns alternate
    data = tmp_path / "my.json"
    data.write_text("[" + ",".join(json.dumps({"messages": row}) for row in messages) + "]", encoding="utf-8")
    folder = model_folder("gemma", files={"config.json": {}})
    recipe = Recipe(model=str(folder), method="lora", data=(str(data),), max_length=64, skip_bad_rows=True)
    facts = read_facts(recipe, Run(output=""))
    assert (facts.rows, facts.rows_rejected) == (19, 1)
    learned = tokenize(recipe, Run(output=""))
    assert (len(learned.examples), [row.number for row in learned.dataset.rejected]) == (19, [8])


def test_a_word_that_stands_for_a_picture_is_told() -> None:
    rows = [pair("<image>\nWhat is it?", "A cat."), pair("What does <image> mean in HTML?", "Nothing.")]
    assert rendered_warnings(rows) == [
        "1 row holds <image> where a picture was: this trains on text only, and that word is kept as text"
    ]
