"""Texts in lines of so many cells."""

import random

import pytest
from rich.cells import cell_len
from rich.text import Text

from qlora_run.terminal.cells import folded


def lines(text: str, width: int) -> list[str]:
    return [line.plain for line in folded(Text(text), width)]


def test_words_stay_whole_and_chinese_breaks_between_signs() -> None:
    assert lines("one two three", 8) == ["one two ", "three"]
    assert lines("1. 你好世界，再见", 9) == ["1. 你好世", "界，再见"]
    assert lines("再见再见，好", 8) == ["再见再", "见，好"]
    assert lines("a\n\n  b\n", 8) == ["a", "", "  b", ""]
    assert lines("abcdefghijkl", 5) == ["abcde", "fghij", "kl"]


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_lost_and_every_line_fits(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice("ab  你好，。🙂\n-(é") for _ in range(400))
    width = draw.randint(4, 30)
    found = lines(text, width)
    assert "".join(found) == text.replace("\n", "")
    assert all(cell_len(line.rstrip()) <= width for line in found)
