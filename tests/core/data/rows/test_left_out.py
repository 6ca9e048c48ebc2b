"""What is told of columns that are left out, and which unknown ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from qlora_core.data import DataSet, ReadOptions, read_data
from qlora_core.data.rows.column_names import meaning
from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe

Read = Callable[..., DataSet]
ROW = {"question": "a", "answer": "b"}


def lines(*columns: dict[str, Any]) -> str:
    return "\n".join(json.dumps(ROW | one) for one in columns)


@pytest.mark.parametrize(
    "values",
    [
        [1, 2.5, True],
        ["easy", "hard", "easy"],
        ["https://example.org/a b"[:21], "s3://bucket/key"],
        ["2026-01-01 12:30:00", "2026-01-02"],
        ["8f3a-11", "9c2d-12"],
        ["closed qa"] * 5 + ["open qa"] * 0,
        ["开放问答"] * 5,
        [[1, 2], [3]],
        [{"p": 0.5}],
        [["math"], ["art"]],
    ],
)
def test_unknown_columns_that_hold_no_texts_are_told(read: Read, values: list[Any]) -> None:
    data = read("a.jsonl", lines(*({"field_7": value} for value in values)))
    assert data.notes == ['columns not used: "field_7"']


@pytest.mark.parametrize(
    "values",
    [
        ["Answer like a pirate would."],
        ["plant cells"],
        ["请用海盗的口吻回答这个问题。"],
        [["One text of four words."]],
        [{"note": "One text of four words."}],
        [chr(97 + number) * 5 for number in range(25)],
        ["two\nlines"],
    ],
)
def test_unknown_columns_that_hold_texts_are_refused(read: Read, values: list[Any]) -> None:
    text = lines(*({"field_7": value} for value in values))
    with pytest.raises(UserError) as caught:
        read("a.jsonl", text)
    count = f"{len(values)} row" + ("s" if len(values) > 1 else "")
    placed = ", or --field context=field_7 to learn with it" if isinstance(values[0], str) else ""
    assert str(caught.value) == (
        f'a.jsonl  "field_7" ({count}) would be left out, and could shape the prompt or the loss'
        f"  -> --ignore field_7 to leave out{placed}"
    )
    data = read("a.jsonl", text, ignore=("field_7",))
    assert data.notes == ['left out on purpose (--ignore): "field_7"']
    if isinstance(values[0], str):
        mapped = read("a.jsonl", text, fields={"context": "field_7"})
        assert mapped.conversations[0].messages[0].content == f"a\n\n{values[0]}"


def test_a_column_that_is_refused_is_no_bad_row(read: Read) -> None:
    text = lines({}, {"passage": "About boats."}) + "\n{broken"
    with pytest.raises(UserError, match=r'"passage" \(1 row\)'):
        read("a.jsonl", text, skip_bad_rows=True)
    data = read("a.jsonl", text, skip_bad_rows=True, ignore=("passage",))
    assert (len(data.conversations), len(data.rejected)) == (2, 1)
    assert data.notes == ['left out on purpose (--ignore): "passage" (1 row)']


def test_counts_are_told_where_not_all_rows_have_a_column(read: Read) -> None:
    data = read("a.jsonl", lines({"id": 1, "context": "C."}, {"id": 2, "source": "x"}, {"id": 3, "answer": "b " * 9}))
    assert data.notes == [
        'columns not used: "id", "source" (1 row)',
        'rows whose "context" stands in the prompt, behind a blank line: 1',
    ]


def test_names_that_no_row_has(read: Read) -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})
    with pytest.raises(UserError, match=r"--ignore mesages  no row has that column; .* -> --ignore messages"):
        read("a.jsonl", text, ignore=("mesages",))
    with pytest.raises(UserError, match=r"--field context=ctx  no row has that column"):
        read("a.jsonl", lines({}), fields={"context": "ctx"})
    with pytest.raises(UserError, match=r"--field content=txt  no row has that column"):
        read("a.jsonl", text, fields={"content": "txt"})


def test_a_filled_spelling_wins_over_an_empty_one(read: Read) -> None:
    data = read("a.jsonl", lines({"system": "", "system_prompt": "Be kind.", "response": "", "answer": "b"}))
    assert [message.content for message in data.conversations[0].messages] == ["Be kind.", "a", "b"]
    assert data.columns_used == ["question", "answer", "system_prompt"]


def test_bytes_are_media(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([ROW | {"field_7": {"bytes": b"PNG"}}]), path)
    with pytest.raises(UserError, match=r'"field_7" \(1 row\) hold images, sound or video: this trains on text only'):
        read_data(ReadOptions(path=str(path)))


def test_names_are_read_however_they_are_spelled() -> None:
    assert [meaning(name) for name in ("Image", "image-url", "photo_id", "imagination")] == [
        "media",
        "media",
        "metadata",
        "unknown",
    ]


def test_ignored_columns_are_part_of_the_recipe() -> None:
    recipe = Recipe(model="m", method="lora", max_length=8, ignore=("context",), examples_per_step=1)
    assert recipe.ignore == ("context",)
