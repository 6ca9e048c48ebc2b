"""Columns of public data sets: the conversation that each must give, or the one line that refuses it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from qlora_core.data import DataSet
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]
Q, A = "What is a ferry?", "A boat that crosses water."
PAIR = [f"user: {Q}", f"*assistant: {A}"]
MESSAGES = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
RENDERED = f"Below is a task.\n\n### Instruction:\n{Q}\n\n### Response:\n{A}"
FUNCTION = {"type": "function", "function": {"name": "seats", "parameters": {"type": "object"}}}
HERMES = f"You call functions. <tools>[{json.dumps({'name': 'seats'})}]</tools>"


def said(data: DataSet) -> list[str]:
    """Each message as ``role: content``, with a star where it is learned; plain text after a bar."""
    row = data.conversations[0]
    if row.text is not None:
        return [f"| {row.text}"]
    return [f"{'*' if one.supervised else ''}{one.role}: {one.content}" for one in row.messages]


def twice(row: dict[str, Any]) -> str:
    """A file of the row and itself: one object alone may hold rows instead of being one."""
    return f"{json.dumps(row)}\n{json.dumps(row)}"


LEARNED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "dolly": (
        {"instruction": Q, "context": "It opened in 1931.", "response": A, "category": "closed_qa"},
        [f"user: {Q}\n\nIt opened in 1931.", PAIR[1]],
    ),
    "dolly without context": ({"instruction": Q, "context": "", "response": A, "category": "open_qa"}, PAIR),
    "context beside a question": (
        {"id": "57", "title": "Ferries", "context": "They float.", "question": Q, "answer": A},
        [f"user: {Q}\n\nThey float.", PAIR[1]],
    ),
    "alpaca": ({"instruction": Q, "input": "", "output": A, "text": RENDERED}, PAIR),
    "guanaco": ({"text": "### Human: a### Assistant: b"}, ["| ### Human: a### Assistant: b"]),
    "sharegpt": ({"id": "x1", "conversations": SHAREGPT}, PAIR),
    "sharegpt, raw": ({"id": "x1", "items": SHAREGPT}, PAIR),
    "ultrachat 200k": ({"prompt": Q, "prompt_id": "9f1c", "messages": MESSAGES}, PAIR),
    "no robots": ({"prompt": Q, "prompt_id": "9f1c", "messages": MESSAGES, "category": "Open QA"}, PAIR),
    "openorca": (
        {"id": "niv.1", "system_prompt": "Be kind.", "question": Q, "response": A},
        ["system: Be kind.", *PAIR],
    ),
    "slimorca": (
        {
            "conversations": [
                {"from": "system", "value": "S", "weight": None},
                SHAREGPT[0] | {"weight": 0.0},
                SHAREGPT[1] | {"weight": 1.0},
            ]
        },
        ["system: S", *PAIR],
    ),
    "gsm8k": ({"question": Q, "answer": "2 + 2 = 4\n#### 4"}, [PAIR[0], "*assistant: 2 + 2 = 4\n#### 4"]),
    "platypus": ({"input": "", "output": A, "instruction": Q, "data_source": "airoboros"}, PAIR),
    "code alpaca": ({"instruction": Q, "input": "x = 1", "output": A}, [f"user: {Q}\nx = 1", PAIR[1]]),
    "moss": (
        {"conversation_id": 1, "category": "Brainstorming", "conversation": [{"human": Q, "assistant": A}]},
        PAIR,
    ),
    "capybara": ({"source": "TaskSource", "conversation": [{"input": Q, "output": A}]}, PAIR),
    "tulu": ({"dataset": "flan_v2", "id": "flan_1", "messages": MESSAGES}, PAIR),
    "webinstruct verified": (
        {"id": 1, "question": Q, "answer": A, "answer_type": "Float", "category": "Physics", "difficulty": "Primary"},
        PAIR,
    ),
    "openhermes": (
        {"conversations": SHAREGPT, "source": "airoboros", "system_prompt": None, "title": "On ferries", "views": None},
        PAIR,
    ),
    "orca math": ({"question": Q, "answer": A}, PAIR),
    "numina": ({"source": "cn_k12", "problem": Q, "solution": A, "messages": MESSAGES}, PAIR),
    "openthoughts": ({"system": "Think.", "conversations": SHAREGPT}, ["system: Think.", *PAIR]),
    "wildchat": (
        {
            "conversation_hash": "ab12",
            "conversation": [
                MESSAGES[0] | {"country": "US", "header": {"user-agent": "Mozilla five point zero"}, "toxic": False},
                MESSAGES[1] | {"turn_identifier": 7},
            ],
            "timestamp": "2023-04-09 00:02:53+00:00",
            "openai_moderation": [{"flagged": False}],
        },
        PAIR,
    ),
    "hermes function calling": (
        {
            "id": "1",
            "conversations": [{"from": "system", "value": HERMES}, *SHAREGPT],
            "tools": json.dumps([FUNCTION]),
            "category": "IoT",
            "task": "Light",
        },
        [f"system: {HERMES}", *PAIR],
    ),
    "history beside query": (
        {"query": Q, "response": A, "history": [["Hi", "Hello"]]},
        ["user: Hi", "*assistant: Hello", *PAIR],
    ),
    "history of messages": (
        {"prompt": Q, "response": A, "history": [{"role": "user", "content": "Hi"}, {"from": "gpt", "value": "Hello"}]},
        ["user: Hi", "*assistant: Hello", *PAIR],
    ),
    "history of objects": (
        {"instruction": Q, "output": A, "history": [{"query": "Hi", "response": "Hello"}]},
        ["user: Hi", "*assistant: Hello", *PAIR],
    ),
    "two equal answers": ({"question": Q, "answer": A, "response": A}, PAIR),
    "a system message twice": (
        {"system": "S", "messages": [{"role": "system", "content": "S"}, *MESSAGES]},
        ["system: S", *PAIR],
    ),
    "a conversation in a column of another case": ({"Messages": MESSAGES}, PAIR),
    "an answer as a message": ({"prompt": MESSAGES[:1], "completion": MESSAGES[1]}, PAIR),
    "empty columns that would matter": ({"question": Q, "answer": A, "images": [], "hint": "", "tools": "[]"}, PAIR),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_of_public_columns(read: Read, name: str) -> None:
    row, expected = LEARNED[name]
    assert said(read("a.jsonl", twice(row))) == expected


REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "oasst": (
        {"message_id": "6ab2", "parent_id": "6ab1", "text": "Can you write?", "role": "prompter", "lang": "en"},
        ["one message of a conversation", "in one row"],
    ),
    "ultrachat": ({"id": "1", "data": [Q, A]}, ['no "messages"', "--field messages=data"]),
    "translation": (
        {"translation": {"en": Q, "zh": A}},
        ["does not say which of them is asked", '{"prompt": the text'],
    ),
    "two languages": ({"en": Q, "zh": A}, ["--field question=en,answer=zh"]),
    "articles": ({"article": Q, "highlights": A, "id": "1"}, ["--field question=article,answer=highlights"]),
    "documents": ({"content": Q}, ["--field text=content"]),
    "tokenized": ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 1]}, ["tokenized already"]),
    "source and target": ({"source": Q, "target": A, "rationale": "b", "task": "t"}, ["question=source,answer=target"]),
    "chat text": ({"system": "SYSTEM: x", "chat": "USER: a\n\nASSISTANT: b"}, ["--field text=chat"]),
    "names with blanks": ({"my question": Q, "my answer": A}, ['--field "question=my question,answer=my answer"']),
    "dialogue and summary": ({"dialogue": Q, "summary": A}, ["--field question=dialogue,answer=summary"]),
    "text and code": (
        {"text": Q, "code": "def first(text):\n    return text[0] or None"},
        ["--field question=text,answer=code"],
    ),
    "number": ({"question": Q, "answer": 2}, ["a number, not text", 'as text: "2"']),
    "firefly": ({"kind": "NLI", "input": Q, "target": A}, ['no "output"', "--field output=target"]),
    "problem and solution": ({"problem": Q, "solution": A}, ["--field question=problem,answer=solution"]),
    "sciq": (
        {"question": Q, "distractor1": "viruses", "correct_answer": A, "support": "Ferries are boats."},
        ["--field answer=correct_answer"],
    ),
    "squad": (
        {"context": "c", "question": Q, "answers": {"text": ["A"], "answer_start": [0]}},
        ['"answers" is an object of several', "one text"],
    ),
    "accepted answers": ({"question": Q, "answers": ["Ada Holm", "A. Holm"]}, ['"answers" is a list of several']),
    "webinstruct": ({"orig_question": Q, "orig_answer": A, "index": 1}, ["--field question=orig_question"]),
    "magpie": (
        {
            "uuid": "1a",
            "instruction": Q,
            "response": A,
            "conversations": SHAREGPT,
            "intent": "The user wants to know what boats do.",
            "knowledge": "One needs to know boats.",
            "input_quality": "good",
            "instruct_reward": -3.1,
        },
        ['"knowledge" (2 rows), "intent" (2 rows) would be left out', "--ignore knowledge,intent"],
    ),
    "metamath": (
        {"query": Q, "response": A, "type": "MATH_Rephrased", "original_question": "Which boat crosses the water?"},
        ['"original_question"', "--ignore original_question"],
    ),
    "glaive": ({"system": "S", "chat": "USER: a ASSISTANT: b"}, ['"chat" is a text, not a list of messages']),
    "xlam": ({"id": 0, "query": Q, "answers": "[]", "tools": json.dumps([FUNCTION])}, ["--field answer=answers"]),
    "open r1": (
        {"problem": Q, "solution": "Another one.", "answer": "b", "generations": ["A long one."], "messages": MESSAGES},
        ['"answer"', '"solution"', '"generations"', "--ignore answer,generations,solution"],
    ),
    "boolq": (
        {"question": Q, "passage": "About boats.", "answer": "yes"},
        ['"passage"', "--ignore passage", "--field context=passage"],
    ),
    "mmlu": ({"question": Q, "subject": "law", "choices": ["a", "b"], "answer": "a"}, ["--ignore choices"]),
    "imdb": ({"text": "A film that I saw", "label": 1}, ['"label"']),
    "rationale": ({"question": Q, "answer": A, "rationale": "Because."}, ["--field reasoning=rationale"]),
    "persona": ({"question": Q, "answer": A, "persona": "A pirate"}, ["--ignore persona", "--field system=persona"]),
    "an unknown text": ({"question": Q, "answer": A, "style": "Answer like a pirate."}, ['"style"', "--ignore style"]),
    "few shots": ({"question": Q, "answer": A, "few_shot_examples": [{"q": 1}]}, ["--ignore few_shot_examples"]),
    "two answers": ({"question": Q, "answer": A, "response": "Other."}, ['"response" (beside "answer", 2 rows)']),
    "two questions": ({"prompt": "Other?", "question": Q, "answer": A}, ['"question" (beside "prompt", 2 rows)']),
    "two system prompts": (
        {"question": Q, "answer": A, "system": "S", "system_prompt": "T"},
        ['"system_prompt" (beside "system", 2 rows)'],
    ),
    "another prompt": ({"prompt": "Other?", "messages": MESSAGES}, ['"prompt" (2 rows)']),
    "another text": ({"instruction": Q, "output": A, "text": "Something else."}, ['"text" (2 rows)']),
    "context beside messages": ({"context": "They float.", "messages": MESSAGES}, ["--ignore context"]),
    "a list as context": ({"question": Q, "answer": A, "context": ["a", "b"]}, ['"context" is a list of 2']),
    "history as text": ({"query": Q, "response": A, "history": "earlier"}, ['"history" is no list']),
    "images": ({"messages": MESSAGES, "images": ["a.png"]}, ['"images"', "text only", "--ignore images"]),
    "llava": ({"id": "1", "image": "1.jpg", "conversations": SHAREGPT}, ['"image"', "text only"]),
    "speech": ({"question": Q, "answer": A, "audio_path": "a.wav"}, ['"audio_path"', "text only"]),
    "rows with weights": ({"question": Q, "answer": A, "weight": 0.3}, ['"weight"', "--ignore weight"]),
    "a row not to learn": ({"question": Q, "answer": A, "train": False}, ['"train" is false']),
    "ranked": ({"prompt": Q, "response": A, "score": 0.2}, ['"score"', "--ignore score"]),
    "dpo": ({"prompt": Q, "chosen": A, "rejected": "No."}, ["preference data", "--field output=chosen"]),
    "dpo in messages": (
        {"prompt": Q, "chosen": MESSAGES, "rejected": MESSAGES, "score_chosen": 8.0, "messages": MESSAGES},
        ["preference data", "--field messages=chosen"],
    ),
    "dpo, sharegpt": (
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "No."}},
        ["preference data", "--field output=chosen"],
    ),
    "dpo, alpaca": ({"instruction": Q, "chosen": A, "rejected": "No."}, ["preference data", "--field output=chosen"]),
    "two transcripts": ({"chosen": "Human: a", "rejected": "Human: b"}, ["preference data", "--field text=chosen"]),
    "a good and a bad answer": (
        {"instruction": Q, "output": [A, "Go away."]},
        ['"output" is a list of 2', "preference"],
    ),
    "one answer in a list": ({"question": Q, "answer": ["Oslo"]}, ['"answer" is a list of 1 text,']),
    "kto": ({"prompt": Q, "completion": A, "label": True}, ["preference data", "--ignore label"]),
    "kto of messages": ({"messages": MESSAGES, "kto_tag": False}, ["preference data", "--ignore kto_tag"]),
    "paired": ({"question": Q, "response_j": A, "response_k": "b"}, ["preference data", "--field output=response_j"]),
    "safe": ({"prompt": Q, "response_0": A, "response_1": "b", "better_response_id": 0}, ["--field output=response_0"]),
    "arena": (
        {"model_a": "x", "winner": "model_a", "conversation_a": MESSAGES, "conversation_b": MESSAGES},
        ["preference data", "--field messages=conversation_a"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_of_public_columns(read: Read, name: str) -> None:
    row, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        read("a.jsonl", twice(row))
    line = str(caught.value).splitlines()[0]
    assert [word for word in words if word not in line] == []


CHOSEN = (
    ({"prompt": Q, "chosen": A, "rejected": "No."}, "output"),
    ({"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[1:]}, "output"),
    ({"prompt": Q, "chosen": MESSAGES, "rejected": MESSAGES, "score_chosen": 8.0}, "output"),
    ({"prompt": Q, "chosen": MESSAGES, "rejected": MESSAGES, "messages": MESSAGES, "score": 1}, "messages"),
    ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}, "output"),
    ({"instruction": Q, "input": "", "chosen": A, "rejected": "No.", "output": "Old."}, "output"),
)


@pytest.mark.parametrize(("row", "name"), CHOSEN)
def test_the_chosen_answer_is_learned_where_a_person_says_so(read: Read, row: dict[str, Any], name: str) -> None:
    data = read("a.jsonl", json.dumps(row), fields={name: "chosen"})
    assert said(data) == PAIR
    assert '"rejected"' in data.notes[0]


def test_a_chosen_answer_behind_another_is_refused(read: Read) -> None:
    with pytest.raises(UserError, match='"chosen" is another  -> --ignore chosen'):
        read(
            "a.jsonl",
            json.dumps({"messages": MESSAGES, "chosen": "Other.", "rejected": "b"}),
            fields={"output": "chosen"},
        )
