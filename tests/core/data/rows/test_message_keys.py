"""Keys of messages: reasoning, calls, flags and the rest are read, told or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from qlora_core.data import DataSet, Message, ReadOptions, read_data
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]
ASKED, ANSWER = {"role": "user", "content": "a"}, {"role": "assistant", "content": "final"}
DRAFT = {"role": "assistant", "content": "draft"}
CALL = {"type": "function", "function": {"name": "seats", "arguments": {"ferry": "Vik"}}}
TEXT_CALL = {"name": "seats", "arguments": '{"ferry": "Vik"}'}
FUNCTION: dict[str, Any] = {"name": "seats", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}


def messages_of(read: Read, *messages: Any, **columns: Any) -> tuple[Message, ...]:
    return read("a.jsonl", json.dumps({"messages": messages, **columns})).conversations[0].messages


# Reasoning


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_reasoning_by_any_name(read: Read, key: str) -> None:
    answer = messages_of(read, ASKED, ANSWER | {key: "17 + 25 = 42."})[1]
    assert (answer.reasoning, answer.content, answer.supervised) == ("17 + 25 = 42.", "final", True)
    assert messages_of(read, ASKED, ANSWER | {key: ""})[1].reasoning is None


@pytest.mark.parametrize("column", ["reasoning", "thinking", "reasoning_content", "Complex_CoT"])
def test_reasoning_beside_an_answer(read: Read, column: str) -> None:
    (row,) = read("a.jsonl", json.dumps({"Question": "a", column: "So it is b.", "Response": "b"})).conversations
    assert row.messages[1] == Message(role="assistant", content="b", supervised=True, reasoning="So it is b.")


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([ASKED | {"reasoning": "t"}, ANSWER], "message 1 (user): only an assistant has reasoning"),
        ([ASKED, ANSWER | {"reasoning": "t", "thinking": "s"}], '"reasoning", "thinking" say different things'),
        ([ASKED, ANSWER | {"reasoning": "t", "content": "<think>a</think>b"}], "has reasoning twice"),
        ([ASKED, ANSWER | {"reasoning": {"text": "t"}}], '"reasoning": the content is an object, not text'),
        ([ASKED, ANSWER | {"content": None, "reasoning": "t"}], '"content" is null'),
    ],
)
def test_reasoning_that_cannot_be(read: Read, messages: list[Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        messages_of(read, *messages)
    assert words in str(caught.value)


# Calls and tools


@pytest.mark.parametrize(
    "calling",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": TEXT_CALL}]},
        {"role": "assistant", "content": "", "tool_calls": [TEXT_CALL]},
        {"role": "assistant", "content": "", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "content": "", "function_call": TEXT_CALL},
        {"from": "function_call", "value": json.dumps(TEXT_CALL)},
        {"from": "tool_call", "value": json.dumps([CALL])},
    ],
)
@pytest.mark.parametrize("answering", ["tool", "observation", "function", "ipython", "tool_response"])
def test_calls_in_every_form(read: Read, calling: dict[str, Any], answering: str) -> None:
    found = {"role": answering, "content": "8", "name": "seats", "tool_call_id": "c1"}
    _, called, told, _ = messages_of(read, ASKED, calling, found, ANSWER)
    assert called == Message(role="assistant", content="", supervised=True, tool_calls=(CALL,))
    assert told == Message(role="tool", content="8", name="seats", tool_call_id="c1")


def test_calls_keep_their_ids_and_calls_in_a_row_are_one_message(read: Read) -> None:
    assert messages_of(read, ASKED, ANSWER | {"tool_calls": [CALL | {"id": "c1"}]})[1].tool_calls[0]["id"] == "c1"
    calls = [{"role": "tool_call", "content": json.dumps(TEXT_CALL | {"name": name})} for name in ("one", "two")]
    called = messages_of(read, ASKED, *calls, {"role": "tool", "content": "8"}, ANSWER)[1]
    assert [call["function"]["name"] for call in called.tool_calls] == ["one", "two"]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (ANSWER | {"tool_calls": [{"name": "f", "arguments": "no json"}]}, "has arguments that are a text"),
        (ANSWER | {"tool_calls": [{"name": "f", "arguments": [1]}]}, "has arguments that are a list"),
        (ANSWER | {"tool_calls": [{"arguments": {}}]}, 'no object with the "name" of a function'),
        (ANSWER | {"tool_calls": [{"type": "code", "name": "f"}]}, "is of type code"),
        (ANSWER | {"tool_calls": "seats(Vik)"}, "a text is no JSON list of functions"),
        (ANSWER | {"tool_calls": [CALL], "function_call": TEXT_CALL}, "two forms of the same"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "only an assistant has tool calls"),
        ({"role": "function_call", "content": "seats(Vik)"}, "a text is no JSON list of functions"),
        (ANSWER | {"content": [{"type": "tool_use", "name": "f"}]}, "part of type tool_use; only text parts"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "part of type input_audio; this trains on text only"),
    ],
)
def test_calls_and_parts_that_cannot_be(read: Read, message: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        messages_of(read, ASKED, message, ANSWER)
    assert words in str(caught.value)


@pytest.mark.parametrize("column", ["tools", "functions", "available_tools"])
@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        [FUNCTION],
        json.dumps([TOOL]),
        [json.dumps(FUNCTION)],
        TOOL,
        [{"type": "function", **FUNCTION}],
    ],
)
def test_tools_in_every_form(read: Read, column: str, tools: Any) -> None:
    for row in ({"messages": [ASKED, ANSWER]}, {"question": "a", "answer": "b"}):
        data = read("a.jsonl", json.dumps(row | {column: tools}))
        assert data.conversations[0].tools == (TOOL,)
        assert (column in data.columns_used, data.notes) == (True, [])


@pytest.mark.parametrize("tools", [["seats"], "seats(ferry)", [{"description": "no name"}], [{}], 7])
def test_tools_that_cannot_be(read: Read, tools: Any) -> None:
    with pytest.raises(UserError, match="tools"):
        messages_of(read, ASKED, ANSWER, tools=tools)


def test_tools_of_the_system_message_are_not_written_twice(read: Read) -> None:
    system = {"role": "system", "content": 'You may call {"name": "seats"}.'}
    data = read("a.jsonl", json.dumps({"messages": [system, ASKED, ANSWER], "tools": [TOOL]}))
    assert (data.conversations[0].tools, data.notes) == (
        (),
        ['rows whose "tools" stand in the system message already: 1'],
    )


def test_parquet_makes_no_keys_up(tmp_path: Path) -> None:
    """A column of objects gives each of them the keys of all."""
    calls = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]
    rows = [
        {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}], "tools": [call]}
        for call in calls
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = read_data(ReadOptions(path=str(tmp_path / "a.parquet"))).conversations
    assert [row.messages[1].tool_calls[0]["function"] for row in read] == calls
    assert [row.tools[0]["function"] for row in read] == calls


# Flags


@pytest.mark.parametrize(
    "flag",
    [
        {"train": False},
        {"weight": 0},
        {"training": False},
        {"trainable": False},
        {"loss": 0.0},
        {"loss_weight": 0},
        {"loss_mask": 0},
        {"learn": False},
        {"train": "false"},
        {"masked": True},
    ],
)
def test_a_draft_is_not_learned(read: Read, flag: dict[str, Any]) -> None:
    found = messages_of(read, ASKED, DRAFT | flag, ASKED, ANSWER)
    assert [message.supervised for message in found] == [False, False, False, True]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train_detail", [{"begin_offset": 0, "end_offset": 2, "train": False}], '"train_detail" (1 message)'),
        ("training_detail", [{"train": False}], '"training_detail" (1 message)'),
        ("mask", True, '"mask" (1 message)'),
        ("label", True, '"label" (1 message)'),
        ("train_on_turn", False, '"train_on_turn" (1 message)'),
        ("ignore", True, '"ignore" (1 message)'),
        ("image", "a.png", '"image" (1 message)'),
        ("context", "They float.", '"context" (1 message)'),
        ("name", "Ann", '"name" (1 message)'),
        ("refusal", "I will not do that.", '"refusal" (1 message)'),
        ("weight", 0.5, '"weight" is 0.5; 0 (not learned) or 1 (learned)'),
        ("value", "other", '"content", "value" say different things'),
    ],
)
def test_keys_that_could_matter(read: Read, key: str, value: Any, words: str) -> None:
    row = json.dumps({"messages": [ASKED, ANSWER | {key: value}]})
    with pytest.raises(UserError) as caught:
        read("a.jsonl", row)
    assert words in str(caught.value)
    data = read("a.jsonl", row, ignore=(key,))
    assert [message.content for message in data.conversations[0].messages] == ["a", "final"]
    assert data.notes == [f'left out on purpose (--ignore): "{key}"']


def test_keys_that_cannot_matter_are_told(read: Read) -> None:
    data = read("a.jsonl", json.dumps({"messages": [ASKED | {"id": "m1"}, ANSWER | {"refusal": None, "time": 3}]}))
    assert data.notes == ['keys of messages not used: "id", "time"']


def test_a_question_at_the_end_is_told(read: Read) -> None:
    data = read("a.jsonl", json.dumps({"messages": [ASKED, ANSWER, ASKED]}))
    assert data.notes == ["rows that end with a question, which is not learned: 1"]
