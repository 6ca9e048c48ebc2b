"""Every way a row can be bad: its exact line, the reason in words, and the way on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_core.data import BadRow, BadRows, DataSet, write_rejected
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]
GOOD = '{"prompt": "Hi", "completion": "Hello"}'
BACKSLASH = "\\"


def bad_line(read: Read, line: str) -> BadRow:
    """Puts ``line`` third in a file of good rows; the only bad row must be it."""
    with pytest.raises(BadRows) as caught:
        read("my.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n")
    (row,) = caught.value.rows
    assert (row.file, row.line, row.raw, caught.value.total_rows) == ("my.jsonl", 3, line, 3)
    return row


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "Hi", "completion": "It is 8', "a quote is never closed"),
        ('{"prompt": "Hi" "completion": "x"}', "a comma is missing"),
        ('{"prompt": "Hi", "completion": "x",}', "a comma too many before the closing bracket"),
        ('{"messages": [1, ]}', "a comma too many before the closing bracket"),
        ("{'prompt': 'Hi'}", "single quotes where JSON wants double quotes"),
        ("{\"prompt\": 'Hi'}", "single quotes where JSON wants double quotes"),
        ('{prompt: "Hi"}', "a key without double quotes"),
        ('{"prompt" "Hi"}', "a colon is missing after a key"),
        ('{"prompt": Hi}', "a text without quotes"),
        ('{"prompt": }', "a value is missing"),
        ('{"prompt": "he said "hi" twice"}', f'a quote inside the text is not escaped (write {BACKSLASH}")'),
        ('{"prompt": "C:\\dir"}', f"a backslash that stands alone (write {BACKSLASH * 2})"),
        ('{"prompt": "a\tb"}', f"a raw line break or tab inside quotes (write {BACKSLASH}n or {BACKSLASH}t)"),
        ('{"prompt": NaN}', "NaN is not JSON (write null)"),
        ('{"prompt": -Infinity}', "-Infinity is not JSON (write null)"),
        ('{"prompt": True}', "True is Python, JSON writes true"),
        ('{"prompt": "Hi"', "it ends too early: a } or ] is missing"),
        ('{"prompt":', "it ends too early: a value is missing"),
        (f"{GOOD},", "a comma after the object"),
        (f"{GOOD} {GOOD}", "two objects on one line"),
        (f"{GOOD} end", "more text after the object"),
        ("Hello", "this is no JSON object"),
        ('{"prompt": ' + "[" * 100_000, "brackets inside brackets, too deep to read"),
        ('{"prompt": ' + "1" * 5000 + "}", "a number with too many digits"),
    ],
)
def test_broken_json(read: Read, line: str, reason: str) -> None:
    assert bad_line(read, line).reason == f"broken JSON: {reason}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[1, 2]", "the row is a list, not an object {...}"),
        ('"Hi"', "the row is a text, not an object {...}"),
        ("7", "the row is a number, not an object {...}"),
        ("null", "the row is null, not an object {...}"),
        ('{"prompt": "a", "prompt": "b", "completion": "c"}', 'the key "prompt" stands twice in one object'),
        ("{}", "the row is empty"),
    ],
)
def test_no_object(read: Read, line: str, reason: str) -> None:
    assert bad_line(read, line).reason == reason


@pytest.mark.parametrize(
    ("row", "reason", "fix"),
    [
        ({"mesages": []}, 'no "messages", found "mesages"', "--field messages=mesages"),
        ({"instruction": "a", "outptu": "b"}, 'no "output", found "outptu"', "--field output=outptu"),
        ({"prompt": "a", "respnse": "b"}, 'no "response", found "respnse"', "--field response=respnse"),
        ({"prompt": "a", "said": "b"}, 'no "completion", found "prompt", "said"', "--field completion=said"),
        ({"output": "a"}, 'no "instruction", found "output"', "--field instruction=COLUMN"),
        ({"a": 1, "b": 2}, 'no "messages", found "a", "b"', "--field messages=COLUMN"),
    ],
)
def test_missing_columns(read: Read, row: Any, reason: str, fix: str) -> None:
    bad = bad_line(read, json.dumps(row))
    assert (bad.reason, bad.fix) == (reason, fix)


USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([USER], "no assistant message: nothing to learn"),
        ([], '"messages" is an empty list'),
        ("Hi", '"messages" is a text, not a list of messages'),
        ({"role": "user"}, '"messages" is an object, not a list of messages'),
        (["Hi"], "message 1 is a text, not an object with a role and a content"),
        ([USER, {"role": "assistant", "content": 8}], "message 2 (assistant): the content is a number, not text"),
        (
            [USER, {"role": "assistant", "content": True}],
            "message 2 (assistant): the content is true or false, not text",
        ),
        ([USER, {"role": "assistant", "content": None}], 'message 2: "content" is null'),
        ([USER, {"role": "assistant"}], 'message 2 has no "content", found "role"'),
        ([{"content": "x"}, REPLY], 'message 1 has no "role", found "content"'),
        ([{"role": 3, "content": "x"}], "message 1: the role is a number, not text"),
        ([USER, REPLY | {"role": "asistant"}], 'message 2: unknown role "asistant"; did you mean assistant?'),
        ([USER, REPLY | {"role": "wizard"}], 'message 2: unknown role "wizard"'),
        ([USER, REPLY | {"content": "  "}], "the assistant's answer is empty: nothing to learn"),
        ([USER, REPLY, USER, REPLY | {"content": ""}], "an assistant message is empty: it teaches to answer nothing"),
        ([USER, REPLY | {"loss_weight": 0}], "every assistant message has weight 0: nothing to learn"),
        ([USER, REPLY | {"loss_weight": 0.5}], 'message 2: "loss_weight" is 0.5; 0 (not learned) or 1 (learned)'),
        ([USER, REPLY | {"train": "yes"}], 'message 2: "train" is yes; 0 (not learned) or 1 (learned)'),
        ([USER, REPLY | {"train": 0, "weight": 1}], 'message 2: "weight", "train" say different things'),
        (
            [USER, REPLY | {"tool_calls": [{}]}],
            'message 2 "tool_calls": a call is no object with the "name" of a function',
        ),
        (
            [USER | {"content": [{"type": "image_url", "image_url": "x"}]}, REPLY],
            "message 1 (user): the content has a part of type image_url; this trains on text only",
        ),
        ([USER | {"content": [{"type": "text"}]}, REPLY], 'message 1 (user): a text part has no "text"'),
        (
            [USER | {"content": [7]}, REPLY],
            "message 1 (user): a part of the content is a number, not an object with a type",
        ),
    ],
)
def test_bad_messages(read: Read, messages: Any, reason: str) -> None:
    assert bad_line(read, json.dumps({"messages": messages})).reason == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "input": "", "output": " "}, '"output" is empty: nothing to learn'),
        ({"instruction": "", "input": "", "output": "b"}, '"instruction" is empty'),
        ({"instruction": "a", "output": 3}, '"output": the content is a number, not text'),
        (
            {"instruction": "a", "output": "b", "history": [["x"]]},
            '"history" is no list of [user, assistant] pairs, nor of messages',
        ),
        ({"prompt": "", "completion": "b"}, '"prompt" is empty'),
        ({"text": ""}, '"text" is empty: nothing to learn'),
        ({"text": 3}, '"text": the content is a number, not text'),
        (
            {"system": "A", "messages": [{"role": "system", "content": "B"}, USER, REPLY]},
            'two system prompts: the column "system" and a system message',
        ),
    ],
)
def test_bad_columns(read: Read, row: Any, reason: str) -> None:
    assert bad_line(read, json.dumps(row)).reason == reason


def test_half_characters_are_refused_and_can_be_set_aside(read: Read, tmp_path: Path) -> None:
    line = '{"text": "sad \\ud83d"}'
    assert bad_line(read, line).reason == "\"text\" holds half a character ('\\ud83d')"
    rows = read("my.jsonl", f"{GOOD}\n{line}", skip_bad_rows=True).rejected
    write_rejected(tmp_path / "rejected.jsonl", rows)
    assert json.loads((tmp_path / "rejected.jsonl").read_text(encoding="utf-8"))["raw"] == line


def test_a_damaged_byte_is_one_bad_row(read: Read) -> None:
    with pytest.raises(BadRows) as caught:
        read("my.jsonl", '{"text": "天气"}\n'.encode() + b'{"text": "a\xff"}\n' + '{"text": "很好"}'.encode())
    (row,) = caught.value.rows
    assert (row.line, row.reason) == (2, '"text" holds a byte that is not UTF-8 (0xff)')


# How they are shown


def test_the_screen(read: Read) -> None:
    quote = '{"prompt": "What does the soup cost?", "completion": "It is 8'
    lines = [GOOD] * 20
    lines[3], lines[10], lines[12] = quote, '{"mesages": []}', '{"messages": [{"role": "user", "content": "x"}]}'
    with pytest.raises(UserError) as caught:
        read("my.jsonl", "\n".join(lines))
    assert str(caught.value).splitlines() == [
        "my.jsonl:4  broken JSON: a quote is never closed",
        '  ...p cost?", "completion": "It is 8        <- ends here',
        'my.jsonl:11  no "messages", found "mesages"  -> --field messages=mesages',
        "my.jsonl:13  no assistant message: nothing to learn",
        "  -> --skip-bad-rows sets 3 of 20 rows aside (rejected.jsonl)",
    ]


def test_the_excerpt_points_at_the_fault_under_wide_characters(read: Read) -> None:
    excerpt = bad_line(read, '{"天": "气" "a": 1}').excerpt.splitlines()
    assert excerpt == ['{"天": "气" "a": 1}', "  " + " " * 12 + "^ here"]


def test_only_ten_kinds_are_shown_and_like_rows_once(read: Read) -> None:
    lines = [GOOD, *(f'{{"strange{n}": 1}}' for n in range(12)), *['{"text": ""}'] * 8]
    with pytest.raises(BadRows) as caught:
        read("my.jsonl", "\n".join(lines))
    text = str(caught.value)
    assert text.count("my.jsonl:") == 10
    assert "and 10 more bad rows" in text
    with pytest.raises(BadRows) as caught:
        read("my.jsonl", "\n".join([GOOD, *['{"text": ""}'] * 8]))
    assert "  the same in 7 more rows: lines 3, 4, 5, 6, 7, ..." in str(caught.value)


def test_no_way_on_where_every_row_is_bad(read: Read) -> None:
    with pytest.raises(BadRows) as caught:
        read("my.jsonl", '{"mesages": []}\n' * 3, skip_bad_rows=True)
    assert str(caught.value).splitlines() == [
        'my.jsonl:1  no "messages", found "mesages"  -> --field messages=mesages',
        "  the same in 2 more rows: lines 2, 3",
    ]


def test_control_characters_do_not_reach_the_screen(read: Read) -> None:
    assert "\x1b" not in bad_line(read, '{"text": "\x1b[2J"}').excerpt


def test_skipping_keeps_the_rest_and_writes_them(read: Read, tmp_path: Path) -> None:
    data = read("my.jsonl", f"{GOOD}\n{{broken\n{GOOD}", skip_bad_rows=True)
    assert [conversation.line for conversation in data.conversations] == [1, 3]
    path = tmp_path / "rejected.jsonl"
    write_rejected(path, data.rejected)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [
        {"line": 2, "reason": "broken JSON: a key without double quotes", "raw": "{broken"}
    ]


def test_a_mapped_column_that_no_row_has(read: Read) -> None:
    with pytest.raises(
        UserError, match=r'no row has that column; my\.jsonl has "mesages"  -> --field messages=mesages'
    ):
        read("my.jsonl", '{"mesages": []}', fields={"messages": "mesage"})


# Faults in and around the rows of a list


@pytest.mark.parametrize(
    ("content", "line", "reason", "kept"),
    [
        (f"[\n{GOOD},\n{{'a': 1}}\n]", 3, "single quotes where JSON wants double quotes", 1),
        (f'[\n{GOOD},\n{{\n"a": 1\n"b": 2}}]', 5, "a comma is missing", 1),
        (f"[\n{GOOD}\n{GOOD}]", 3, "a comma is missing", 2),
        (f"[\n{GOOD},\n{GOOD}\n", 4, "it ends too early: a ] is missing", 2),
        (f"[\n{GOOD},\n]", 3, "a comma too many before the closing bracket", 1),
        (f"[{GOOD}]\nend", 2, "more text after the closing ]", 1),
        ('{\n "text": "a"\n}\n{\n "text": "b",\n}', 6, "a comma too many before the closing bracket", 1),
    ],
)
def test_a_broken_list_is_refused_and_read_past_on_request(
    read: Read, content: str, line: int, reason: str, kept: int
) -> None:
    with pytest.raises(BadRows) as caught:
        read("my.json", content)
    (row,) = caught.value.rows
    assert (row.line, row.reason) == (line, f"broken JSON: {reason}")
    assert "--skip-bad-rows" in str(caught.value)
    data = read("my.json", content, skip_bad_rows=True)
    assert len(data.conversations) == kept
    assert data.rejected or reason in data.warnings[0]


def test_rows_of_a_list_can_be_skipped_where_the_list_is_whole(read: Read) -> None:
    content = f'[{GOOD},\n{{"text": NaN}},\n{{"text": "a", "text": "b"}},\n7,\n{GOOD}]'
    data = read("my.json", content, skip_bad_rows=True)
    assert [(row.line, row.raw) for row in data.rejected] == [
        (2, '{"text": NaN}'),
        (3, '{"text": "a", "text": "b"}'),
        (4, "7"),
    ]
    assert [conversation.line for conversation in data.conversations] == [1, 5]


def test_csv_faults(read: Read) -> None:
    content = 'prompt,completion\na,b\n"x\ny",z,w\nonly\n"p"q,r\nc,\nd,e\n'
    data = read("my.csv", content, skip_bad_rows=True)
    assert [(row.line, row.reason) for row in data.rejected] == [
        (3, "3 cells, the header has 2: text with a comma, quote or line break wants quotes"),
        (5, "1 cells, the header has 2: text with a comma, quote or line break wants quotes"),
        (6, "broken CSV: a quote inside the text is not doubled"),
        (7, '"completion" is empty: nothing to learn'),
    ]
    assert [conversation.line for conversation in data.conversations] == [2, 8]
    assert data.rejected[2].raw == '"p"q,r'


def test_csv_quote_that_is_never_closed(read: Read) -> None:
    with pytest.raises(BadRows) as caught:
        read("my.csv", 'prompt,completion\na,b\nc,"d\ne,f\n', skip_bad_rows=True)
    (row,) = caught.value.rows
    assert (row.line, row.reason) == (3, "a quote that opens in this row is never closed")
