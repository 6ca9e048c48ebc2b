"""Good files of every kind and shape, and what is told of them."""

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from qlora_core.data import DataSet, Message, ReadOptions, parse_fields, read_data
from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe

Read = Callable[..., DataSet]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
ROW = {"messages": MESSAGES}


def pairs(dataset: DataSet, row: int = 0) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.supervised) for message in dataset.conversations[row].messages]


ASKED, ANSWERED = ("user", "Hi", False), ("assistant", "Hello", True)


@pytest.mark.parametrize(
    ("row", "shape", "columns"),
    [
        ({"messages": MESSAGES}, "messages", ["messages"]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            "sharegpt",
            ["conversations"],
        ),
        ({"instruction": "Hi", "input": "", "output": "Hello"}, "instruction", ["instruction", "input", "output"]),
        ({"instruction": "Hi", "response": "Hello"}, "instruction", ["instruction", "response"]),
        ({"input": "Hi", "output": "Hello"}, "input/output", ["input", "output"]),
        ({"prompt": "Hi", "completion": "Hello"}, "prompt/completion", ["prompt", "completion"]),
        ({"question": "Hi", "answer": "Hello"}, "prompt/completion", ["question", "answer"]),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt/completion", ["prompt", "completion"]),
    ],
)
def test_every_shape_gives_the_same_conversation(read: Read, row: Any, shape: str, columns: list[str]) -> None:
    data = read("a.jsonl", json.dumps(row))
    assert pairs(data) == [ASKED, ANSWERED]
    assert (data.row_shape, data.columns_used, data.rejected, data.notes) == (shape, columns, [], [])


def test_instruction_row_joins_input_history_and_system(read: Read) -> None:
    row = {
        "instruction": "Translate",
        "input": "chat",
        "output": "cat",
        "system": "Short.",
        "history": [["One?", "Un"]],
    }
    data = read("a.jsonl", json.dumps(row))
    assert pairs(data) == [
        ("system", "Short.", False),
        ("user", "One?", False),
        ("assistant", "Un", True),
        ("user", "Translate\nchat", False),
        ("assistant", "cat", True),
    ]
    assert "system" in data.columns_used


def test_text_rows_are_whole_and_have_no_messages(read: Read) -> None:
    conversation = read("a.jsonl", '{"text": "Once."}').conversations[0]
    assert (conversation.text, conversation.messages, conversation.supervise_all) == ("Once.", (), True)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("developer", "system"),
        ("human", "user"),
        ("GPT", "assistant"),
        ("model", "assistant"),
        ("observation", "tool"),
        ("tool", "tool"),
    ],
)
def test_roles_by_other_names(read: Read, name: str, role: str) -> None:
    row = {"conversations": [{"from": name, "value": "x"}, *[{"from": "gpt", "value": "y"}]]}
    assert read("a.jsonl", json.dumps(row)).conversations[0].messages[0].role == role


@pytest.mark.parametrize("key", ["loss_weight", "weight", "train", "training", "trainable", "loss", "loss_mask"])
@pytest.mark.parametrize(
    ("mark", "supervised"), [(0, False), (0.0, False), (False, False), ("false", False), (1, True), (True, True)]
)
def test_marks_on_answers(read: Read, key: str, mark: object, supervised: bool) -> None:
    messages = [*MESSAGES, MESSAGES[0], {"role": "assistant", "content": "Again", key: mark}]
    data = read("a.jsonl", json.dumps({"messages": messages}))
    assert [message[2] for message in pairs(data)] == [False, True, False, supervised]


def test_a_weight_on_a_question_counts_only_when_all_is_supervised(read: Read) -> None:
    row = json.dumps({"messages": [MESSAGES[0] | {"train": True}, MESSAGES[1]]})
    data = read("a.jsonl", row)
    assert pairs(data)[0] == ASKED
    assert data.notes == ["messages that ask to be trained on but are no answers: 1 (--loss-on all)"]
    assert read("a.jsonl", row, loss_on="all").notes == []


def test_loss_on_all_supervises_every_turn_but_the_marked(read: Read) -> None:
    row = {"messages": [{"role": "system", "content": "S", "train": False}, *MESSAGES]}
    data = read("a.jsonl", json.dumps(row), loss_on="all")
    assert [message[2] for message in pairs(data)] == [False, True, True]
    assert data.conversations[0].supervise_all


def test_text_parts_are_joined(read: Read) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "value": "lo"}]
    data = read("a.jsonl", json.dumps({"messages": [MESSAGES[0], {"role": "assistant", "content": parts}]}))
    assert pairs(data) == [ASKED, ANSWERED]


def test_system_prompt_goes_where_none_is(read: Read) -> None:
    own = {"messages": [{"role": "system", "content": "Own."}, *MESSAGES]}
    data = read("a.jsonl", f"{json.dumps(ROW)}\n{json.dumps(own)}", system_prompt="Given.")
    assert [pairs(data, row)[0][1] for row in (0, 1)] == ["Given.", "Own."]


def test_fields_name_columns_and_message_keys(read: Read) -> None:
    row = {"mesages": [{"speaker": "user", "said": "Hi"}, {"speaker": "assistant", "said": "Hello"}]}
    fields = parse_fields(["messages=mesages", "role=speaker", "content=said"])
    data = read("a.jsonl", json.dumps(row), fields=fields)
    assert pairs(data) == [ASKED, ANSWERED]
    assert data.columns_used == ["mesages"]
    assert data.notes == []


def test_a_mapped_column_wins_over_its_namesake(read: Read) -> None:
    row = {"instruction": "Hi", "output": "Wrong", "best": "Hello"}
    assert pairs(read("a.jsonl", json.dumps(row), fields={"output": "best"})) == [ASKED, ANSWERED]


def test_unused_columns_and_keys_are_told(read: Read) -> None:
    row = {"id": 7, "messages": [MESSAGES[0] | {"timestamp": "2026-01-01"}, MESSAGES[1]]}
    notes = read("a.jsonl", json.dumps(row)).notes
    assert notes == ['columns not used: "id"', 'keys of messages not used: "timestamp"']


def test_mixed_shapes_are_read_and_told(read: Read) -> None:
    text = "\n".join(map(json.dumps, [ROW, {"text": "Once."}, ROW]))
    data = read("a.jsonl", text)
    assert data.row_shape == "messages + text"
    assert data.notes == ["rows of several shapes: messages 2, text 1"]


def test_max_samples_takes_the_first_good_rows(read: Read) -> None:
    text = "\n".join([json.dumps(ROW), "{broken", json.dumps({"text": "third"}), json.dumps({"text": "fourth"})])
    data = read("a.jsonl", text, max_samples=2, sample="first", skip_bad_rows=True)
    assert [conversation.line for conversation in data.conversations] == [1, 3]
    assert "the first 2 rows in file order (--max-samples)" in data.notes


def test_fingerprint_is_that_of_the_bytes(read: Read) -> None:
    content = json.dumps(ROW).encode()
    assert read("a.jsonl", content).fingerprint == hashlib.sha256(content).hexdigest()


# File formats


def test_json_list_knows_the_lines_of_its_rows(read: Read) -> None:
    data = read("a.json", f"[\n{json.dumps(ROW)},\n\n{json.dumps(ROW, indent=1)}\n,{json.dumps(ROW)}]\n")
    lines_of_second = json.dumps(ROW, indent=1).count("\n")
    assert [conversation.line for conversation in data.conversations] == [2, 4, 5 + lines_of_second]
    assert (data.file_format, data.notes) == ("JSON", [])


@pytest.mark.parametrize(
    ("name", "content", "file_format", "note"),
    [
        ("a.json", f"{json.dumps(ROW)}\n{json.dumps(ROW)}\n", "JSONL", "a.json holds one JSON object per line"),
        ("a.jsonl", f"[{json.dumps(ROW)},\n{json.dumps(ROW)}]", "JSON", "a.jsonl holds a JSON list"),
        ("a.jsonl", f"[{json.dumps(ROW)}, {json.dumps(ROW)}]", "JSON", "a.jsonl holds a JSON list"),
        ("a.jsonl", json.dumps(ROW, indent=2) * 2, "JSON", "a.jsonl holds a JSON list or objects over several lines"),
    ],
)
def test_a_file_may_hold_another_kind_of_json(read: Read, name: str, content: str, file_format: str, note: str) -> None:
    data = read(name, content)
    assert (len(data.conversations), data.file_format) == (2, file_format)
    assert data.notes[0].startswith(note)


def test_lines_end_at_line_feeds_only(read: Read) -> None:
    separator = "\u2028"
    row = json.dumps({"text": f"a{separator}b\x85c"}, ensure_ascii=False)
    data = read("a.jsonl", f"{row}\r\n\r\n  \n{row}")
    assert [(c.line, c.text) for c in data.conversations] == [(1, f"a{separator}b\x85c"), (4, f"a{separator}b\x85c")]


def test_csv_with_quotes_line_breaks_and_messages(read: Read) -> None:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["prompt", "completion"])
    writer.writeheader()
    writer.writerows([{"prompt": 'a,\n"b"', "completion": "x"}, {"prompt": "c", "completion": "y" * 200_000}])
    data = read("a.csv", "\ufeff" + out.getvalue())
    assert [(c.line, c.messages[0].content) for c in data.conversations] == [(2, 'a,\n"b"'), (4, "c")]
    assert data.file_format == "CSV"
    messages = json.dumps(MESSAGES).replace('"', '""')
    assert pairs(read("b.csv", f'messages\n"{messages}"\n')) == [ASKED, ANSWERED]


def test_csv_with_semicolons(read: Read) -> None:
    assert pairs(read("a.csv", "question;answer\nHi;Hello\n")) == [ASKED, ANSWERED]


def test_parquet(tmp_path: Path) -> None:
    rows = [ROW | {"note": None}, {"messages": [{**MESSAGES[0], "loss_weight": 0.0}, MESSAGES[1]], "note": None}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    data = read_data(ReadOptions(path=str(path)))
    assert [pairs(data, row) for row in (0, 1)] == [[ASKED, ANSWERED]] * 2
    assert [conversation.line for conversation in data.conversations] == [1, 2]
    assert (data.file_format, data.notes) == ("Parquet", [])


def test_format_overrides_the_suffix(read: Read) -> None:
    assert len(read("a.txt", json.dumps(ROW), format="jsonl").conversations) == 1


# Files that cannot be read


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("a.txt", b"x", {}, ["a.txt", ".txt is no data format", ".jsonl, .json, .csv, .tsv, .parquet or .xlsx"]),
        ("data", b"x", {}, ["a name without a suffix", ".parquet"]),
        ("a.jsonl", b"", {}, ["a.jsonl  is empty"]),
        ("a.jsonl", b"\n \r\n", {}, ["a.jsonl  is empty"]),
        ("a.json", b"[ ]", {}, ["a.json  holds no rows"]),
        ("a.csv", b"prompt,completion\n", {}, ["a.csv  holds no rows"]),
        ("a.jsonl", b"PAR1xxxxPAR1", {}, ["is a Parquet file", "--data-format parquet"]),
        ("a.parquet", b"{}", {}, ["is not a Parquet file"]),
        ("a.parquet", b"PAR1 broken PAR1", {}, ["a.parquet", "damaged"]),
        ("a.csv", b"q,q\n1,2\n", {}, ["a.csv:1  the header names a column twice: q"]),
        ("a.jsonl", b"{}", {"max_samples": 0}, ["--max-samples 0", "1 or more"]),
        ("a.jsonl", b"{}", {"fields": {"mesages": "x"}}, ["no such name mesages", "did you mean messages"]),
    ],
)
def test_files_that_cannot_be_read(
    read: Read, name: str, content: bytes, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        read(name, content, **options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    for name in ("train.jsonl", "other.csv", "notes.txt"):
        (tmp_path / name).write_text("x")
    with pytest.raises(UserError, match=r"no such file; did you mean train\.jsonl\?"):
        read_data(ReadOptions(path=str(tmp_path / "trian.jsonl")))
    with pytest.raises(UserError, match=r"no such file; nearby: other\.csv, train\.jsonl"):
        read_data(ReadOptions(path=str(tmp_path / "zzz.json")))
    with pytest.raises(UserError, match=r"no such file, and no folder .*nowhere"):
        read_data(ReadOptions(path=str(tmp_path / "nowhere" / "a.json")))


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        read_data(ReadOptions(path=str(path)))


def test_a_read_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="cannot be read: Permission denied"):
        read_data(ReadOptions(path=str(path)))


@pytest.mark.parametrize("item", ["messages", "=x", "messages="])
def test_field_wants_name_and_column(item: str) -> None:
    with pytest.raises(UserError, match="want NAME=COLUMN"):
        parse_fields([item])


def test_options_from_a_recipe() -> None:
    recipe = Recipe(
        model="m",
        method="lora",
        max_length=8,
        examples_per_step=1,
        data=("d.csv",),
        field=("text=body",),
        loss_on="all",
    )
    options = ReadOptions.from_recipe(recipe, *recipe.data)
    assert (options.path, options.fields, options.loss_on, options.seed) == ("d.csv", {"text": "body"}, "all", 42)
    assert Message(role="user", content="x").supervised is False
