"""Messages in other forms than a list of roles and contents."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from qlora_core.data import Conversation, DataSet
from qlora_core.data.bad_rows import BadRows

Read = Callable[..., DataSet]


def _one(read: Read, row: dict[str, Any], name: str = "my.jsonl") -> Conversation:
    (conversation,) = read(name, json.dumps(row) + "\n").conversations
    return conversation


def _said(conversation: Conversation) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.supervised) for message in conversation.messages]


ASKED, ANSWERED = ("user", "Hi", False), ("assistant", "Hello", True)


def test_bare_texts_are_question_and_answer_by_turns(read: Read) -> None:
    data = read("lima.jsonl", json.dumps({"conversations": ["Hi", "Hello", "More?", "No."], "source": "wiki"}))
    assert _said(data.conversations[0]) == [ASKED, ANSWERED, ("user", "More?", False), ("assistant", "No.", True)]
    assert "rows whose messages are bare texts, read as question and answer by turns: 1" in data.notes


def test_a_column_of_bare_texts_by_name(read: Read) -> None:
    data = read("my.jsonl", json.dumps({"id": "1", "data": ["Hi", "Hello"]}) + "\n", fields={"messages": "data"})
    assert _said(data.conversations[0]) == [ASKED, ANSWERED]


def test_an_object_of_lists_is_a_list_of_objects(read: Read) -> None:
    """What Parquet files of older tools hold."""
    row = {"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Hello"], "weight": None}}
    assert _said(_one(read, row)) == [ASKED, ANSWERED]


def test_one_row_of_exchanges_is_no_file_of_rows(read: Read) -> None:
    row = {"conversation": [{"system": "s", "input": "Hi", "output": "Hello"}, {"input": "a", "output": "b"}]}
    assert _said(_one(read, row))[1:3] == [ASKED, ANSWERED]
    speakers = {"dialog": [{"speaker": "user", "text": "Hi"}, {"speaker": "bot", "text": "Hello"}]}
    with pytest.raises(BadRows, match='message 1 has no "role", found "speaker", "text"'):
        read("my.jsonl", json.dumps(speakers))


def test_parts_of_type_thinking_are_reasoning(read: Read) -> None:
    parts = [{"type": "thinking", "thinking": "easy", "signature": "x"}, {"type": "text", "text": "Hello"}]
    conversation = _one(
        read, {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": parts}]}
    )
    assert _said(conversation) == [ASKED, ANSWERED]
    assert conversation.messages[1].reasoning == "easy"


def test_a_tools_result_that_is_an_object_is_its_json(read: Read) -> None:
    calls = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": {"warm": True, "where": "Bodø"}},
        {"role": "assistant", "content": "Hello"},
    ]
    assert _one(read, {"messages": messages}).messages[2].content == '{"warm": true, "where": "Bodø"}'


def test_pythons_own_notation_is_named(read: Read) -> None:
    cell = "[{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]"
    with pytest.raises(BadRows, match="a list in Python's notation") as caught:
        read("my.csv", f'messages\n"{cell}"\n')
    assert "json.dumps" in str(caught.value)


def test_no_tools_stand_in_no_system_message(read: Read) -> None:
    row = {"system": "Be kind.", "tools": "[]", "prompt": "Hi", "completion": "Hello"}
    data = read("my.jsonl", json.dumps(row))
    assert not data.notes
    assert data.conversations[0].tools == ()


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ([{"role": "user", "content": "a"}], '{"messages": [...]}'),
        (["a", "b"], '{"prompt": ..., "completion": ...}'),
        ("a", '{"text": ...}'),
    ],
)
def test_a_row_that_is_no_object_is_told_which_it_could_be(read: Read, row: Any, fix: str) -> None:
    with pytest.raises(BadRows) as caught:
        read("my.jsonl", json.dumps(row) + "\n" + json.dumps(row))
    assert {bad.fix for bad in caught.value.rows} == {fix}


def test_faults_between_rows_are_places_not_rows(read: Read) -> None:
    row = '{"prompt": "a", "completion": "b"}'
    with pytest.raises(BadRows, match="the same in 1 more place: line"):
        read("my.json", f"[{row}\n{row}\n{row}]")
