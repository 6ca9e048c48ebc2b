"""CSV whose quotes swallow rows: told or undone, never silent; and Excel's own first line."""

from collections.abc import Callable

import pytest

from qlora_core.data import DataSet
from qlora_core.data.bad_rows import BadRows

Read = Callable[..., DataSet]
ROWS = [f"q{number},a{number}\n" for number in range(30)]


def _table(*changed: tuple[int, str]) -> str:
    rows = ROWS.copy()
    for at, line in changed:
        rows[at] = line
    return "prompt,completion\n" + "".join(rows)


def _answers(dataset: DataSet) -> list[str]:
    return [row.messages[-1].content for row in dataset.conversations]


@pytest.mark.parametrize("closes", [(), ((20, 'q20,"a20"\n'),)], ids=["to the end", "to the next quote"])
def test_an_open_quote_costs_its_own_row_alone(read: Read, closes: tuple[tuple[int, str], ...]) -> None:
    text = _table((5, 'q5,"a5\n'), *closes)
    dataset = read("my.csv", text, skip_bad_rows=True)
    assert _answers(dataset) == [f"a{number}" for number in range(30) if number != 5]
    assert [(row.line, row.raw) for row in dataset.rejected] == [(7, 'q5,"a5')]
    with pytest.raises(BadRows, match=r"my.csv:7  a quote that opens in this row is not closed in it") as caught:
        read("my.csv", text)
    assert "sets 1 of 30 rows aside" in str(caught.value.fix)


def test_rows_that_a_quote_swallowed_are_told(read: Read) -> None:
    dataset = read("my.csv", _table((5, 'q5,"a5\n'), (20, 'q20,a20"\n')))
    assert len(dataset.conversations) == 15
    assert [warning[:56] for warning in dataset.warnings] == [
        "my.csv:7 a quoted cell goes over 16 lines, each of which"
    ]


@pytest.mark.parametrize(
    "answer",
    ["Dear Bob,\nthank you, really.\nSee you, soon\nAda, Vik", "one\ntwo\nthree\nfour", "a\nb,c", "x;y\nz;w\nu;v"],
    ids=["prose", "lines", "two lines", "another separator"],
)
def test_answers_of_several_lines_are_left_in_peace(read: Read, answer: str) -> None:
    dataset = read("my.csv", _table((5, f'q5,"{answer}"\n')))
    assert _answers(dataset)[5] == answer
    assert len(dataset.conversations) == 30
    assert not dataset.warnings


def test_an_open_quote_in_front_of_prose_ends_the_file(read: Read) -> None:
    with pytest.raises(BadRows, match="is never closed") as caught:
        read("my.csv", 'prompt,completion\nq,"It began\nlong ago, in Vik,\nand went on.\n', skip_bad_rows=True)
    assert caught.value.fix is None


def test_excels_line_that_names_the_separator(read: Read) -> None:
    dataset = read("my.csv", "sep=;\r\nprompt;completion\r\n1,5;2,5\r\nq\r\n", skip_bad_rows=True)
    assert _answers(dataset) == ["2,5"]
    assert [row.line for row in dataset.rejected] == [4]
