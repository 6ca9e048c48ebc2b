"""JSON in every layout gives the same rows, and one bad row costs that row alone."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from qlora_core.data import BadRows, DataSet
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]
COUNT = 6
TABLE = [
    {"messages": [{"role": "user", "content": f"Say {n}."}, {"role": "assistant", "content": f"It is {n}."}]}
    for n in range(COUNT)
]
PAIRS = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(3)]
BAD = 2
LAYOUTS: dict[str, Callable[[list[str]], str]] = {
    "a row a line": "\n".join,
    "blank lines between": "\n\n".join,
    "list on one line": lambda rows: "[" + ",".join(rows) + "]",
    "three rows a line": lambda rows: "[\n" + ", ".join(rows[:3]) + ",\n" + ", ".join(rows[3:]) + "\n]",
    "list, a row a line": lambda rows: "[\n" + ",\n".join(rows) + "\n]",
    "carriage returns": lambda rows: "[\r\n" + ",\r\n".join(rows) + "\r\n]",
    "with a mark": lambda rows: "\ufeff" + "\n".join(rows),
    "under a key": lambda rows: '{"version": 1, "data": [' + ", ".join(rows) + "]}",
    "pretty list": lambda rows: (
        "[" + ",".join(row.replace("[{", "[\n  {").replace("}, {", "},\n  {") for row in rows) + "]"
    ),
    "nothing between": "".join,
    "commas without brackets": ",\n".join,
    "several lists": lambda rows: "[" + ",".join(rows[:3]) + "]\n[" + ",".join(rows[3:]) + "]",
}
FAULTS: dict[str, tuple[str, str]] = {
    "open quote": ('"Say 2."', '"Say 2.'),
    "single quotes": ('"Say 2."', "'Say 2.'"),
    "no number": ('"Say 2."', "NaN"),
    "comma too many": ('"Say 2."}', '"Say 2.",}'),
    "comma missing": ('"user", "content": "Say 2."', '"user" "content": "Say 2."'),
    "quote inside": ("Say 2.", 'Say "2".'),
    "comment": ('"Say 2."', '"Say 2." /* two */'),
    "bracket missing": ('"It is 2."}]}', '"It is 2."]}'),
    "bare key": ('"content": "Say 2."', 'content: "Say 2."'),
    "raw line break": ("Say 2.", "Say\n2."),
    "role unknown": ('"user", "content": "Say 2."', '"wizard", "content": "Say 2."'),
}


def asked(data: DataSet) -> list[str]:
    return [conversation.messages[0].content for conversation in data.conversations]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_good_rows_are_read_from_every_layout(read: Read, layout: str) -> None:
    data = read("my.json", LAYOUTS[layout](list(map(json.dumps, TABLE))))
    assert asked(data) == [f"Say {n}." for n in range(COUNT)]
    assert data.rejected == []


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_row_costs_that_row_alone(read: Read, layout: str, fault: str) -> None:
    rows = list(map(json.dumps, TABLE))
    rows[BAD] = rows[BAD].replace(*FAULTS[fault])
    text = LAYOUTS[layout](rows)
    with pytest.raises(BadRows, match=f"sets 1 of {COUNT} rows aside"):
        read("my.json", text)
    data = read("my.json", text, skip_bad_rows=True)
    assert asked(data) == [f"Say {n}." for n in range(COUNT) if n != BAD]
    assert len(data.rejected) == 1
    assert "2." in data.rejected[0].raw


def test_rows_over_several_lines_among_rows_of_one(read: Read) -> None:
    first, second, third = json.dumps(TABLE[0]), json.dumps(TABLE[1], indent=2), json.dumps(TABLE[2])
    assert asked(read("my.jsonl", f"{first}\n{second}\n{third}")) == ["Say 0.", "Say 1.", "Say 2."]


def test_many_bad_rows_in_a_row_are_counted_one_by_one(read: Read) -> None:
    rows = [json.dumps(row).replace("Say", '"Say') if n % 3 else json.dumps(row) for n, row in enumerate(TABLE * 50)]
    data = read("my.json", "[" + ",".join(rows) + "]", skip_bad_rows=True)
    assert (len(data.conversations), len(data.rejected)) == (100, 200)
    assert [row.number for row in data.rejected[:4]] == [2, 3, 5, 6]


@pytest.mark.parametrize(
    "holding",
    [
        {key: [row[key] for row in PAIRS] for key in PAIRS[0]},
        {key: {str(n): row[key] for n, row in enumerate(PAIRS)} for key in PAIRS[0]},
        {f"row-{n}": row for n, row in enumerate(PAIRS)},
        {"columns": list(PAIRS[0]), "index": [0, 1, 2], "data": [list(row.values()) for row in PAIRS]},
        {"schema": {"fields": []}, "data": PAIRS},
        {"data": PAIRS, "version": "1.0"},
        {"type": "text2text", "instances": PAIRS},
        {"conversations": PAIRS},
        {"whatever": PAIRS},
        {"features": [{"name": "x"}], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(PAIRS)]},
    ],
)
def test_one_object_that_holds_all_rows(read: Read, holding: Any) -> None:
    for text in (json.dumps(holding), json.dumps(holding, indent=1)):
        data = read("my.json", text)
        assert [[message.content for message in row.messages] for row in data.conversations] == [
            [row["instruction"], row["output"]] for row in PAIRS
        ]
        assert data.notes


def test_columns_of_conversations(read: Read) -> None:
    data = read("my.json", json.dumps({"messages": [row["messages"] for row in TABLE]}))
    assert asked(data) == [f"Say {n}." for n in range(COUNT)]
    assert data.notes == ["my.json holds columns, not rows: read as 6 rows"]


def test_one_conversation_stays_one_row(read: Read) -> None:
    assert asked(read("my.json", json.dumps(TABLE[0], indent=1))) == ["Say 0."]


@pytest.mark.parametrize(
    ("holding", "words"),
    [
        ({"data": {"train": PAIRS}}, ['its rows lie deeper than one list: under "data.train"', 'jq ".data.train"']),
        ({"train": PAIRS, "test": PAIRS}, ['several lists of rows: "train", "test"']),
        ({"instruction": ["a", "b"], "output": ["c"]}, ["columns, not rows", '"instruction" 2, "output" 1']),
        ({"system": "Be short.", "data": PAIRS}, ['"system" stands beside the rows', "--system-prompt"]),
        ({"columns": ["instruction", "output"], "data": [["a"]]}, ["as many cells"]),
        (
            {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": [{"question": "q"}]}]}]},
            ['under "data[].paragraphs[].qas"'],
        ),
    ],
)
def test_rows_that_cannot_be_read_without_a_guess(read: Read, holding: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        read("my.json", json.dumps(holding))
    assert [word for word in words if word not in str(caught.value)] == []


def test_cells_that_the_viewer_cut(read: Read) -> None:
    rows = [{"row_idx": n, "row": row, "truncated_cells": ["output"] * (n == 1)} for n, row in enumerate(PAIRS)]
    data = read("my.json", json.dumps({"rows": rows}), skip_bad_rows=True)
    assert [row.number for row in data.rejected] == [2]


@pytest.mark.parametrize("depth", [980, 1100, 100_000])
def test_nesting_is_refused_in_one_line(read: Read, depth: int) -> None:
    deep = "[" * depth + "]" * depth
    with pytest.raises(UserError, match="too deep to read"):
        read("my.csv", f'messages\n"{deep}"\n')
    if depth > 1000:
        with pytest.raises(UserError, match="too deep to read"):
            read("my.json", f'{{"prompt": {deep}}}')
