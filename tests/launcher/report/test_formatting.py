import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from qlora_run.report import formatting
from qlora_run.terminal import cells


@pytest.mark.parametrize(
    ("value", "text"),
    [(2e-4, "2e-4"), (1.25e-5, "1.25e-5"), (0.05, "0.05"), (3.0, "3"), (12_000, "12,000"), (0.0, "0"), (1e-8, "1e-8")],
)
def test_numbers_read_as_people_write_them(value: Any, text: str) -> None:
    assert formatting.number(value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("seed", 12345, "12345"),
        ("token_budget", 4096, "4,096"),
        ("vram_budget_bytes", 12 * 2**30, "12.0 GiB"),
        ("target_modules", ["q_proj", "v_proj"], "q_proj, v_proj"),
        ("sample_prompts", (), "none"),
        ("double_quant", True, "yes"),
        ("max_steps", None, "not set"),
        ("learning_rate", 2e-4, "2e-4"),
        ("made_up", "x", "x"),
    ],
)
def test_values_of_settings(name: str, value: Any, text: str) -> None:
    assert formatting.value_text(name, value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [(3720, 4800, "62-80 min"), (80, 600, "80 s to 10 min"), (59.6, 60.4, "60 s"), (1.4e6, 1.7e6, "16-20 days")],
)
def test_a_range_of_time(low: float, high: float, text: str) -> None:
    assert formatting.time_range(low, high) == text


def test_an_end_on_another_day_says_the_day() -> None:
    noon = time.mktime((2027, 1, 15, 12, 0, 0, 0, 0, -1))
    assert formatting.ends_at(noon, 1800) == "12:30 (30 min)"
    assert formatting.ends_at(noon, 86400) == f"{time.strftime('%d %b', time.localtime(noon + 86400))} 12:00 (24.0 h)"


@pytest.mark.parametrize(("loss", "text"), [(1.234, "1.23"), (0.0123, "0.012"), (0.0, "0"), (float("nan"), "nan")])
def test_losses(loss: float, text: str) -> None:
    assert formatting.loss_text(loss) == text


def test_foreign_text_cannot_touch_the_terminal() -> None:
    evil = "a\x1b[31mred\x1b[0m\r\nb\x1b]0;title\x07c\x9bd\te\x00"
    assert formatting.one_line(evil) == "ared bc d e"


def test_cutting_counts_terminal_cells() -> None:
    assert cells.fit("退款三十天之后", 9) == "退款三..."
    assert cell_len(cells.fit("退款三十天之后", 8)) <= 8
    assert cells.fit("short", 5) == "short"
    assert cells.fit("longer", 2) == ".."


def test_joining_breaks_only_between_parts() -> None:
    assert cells.join_fitting(["aaa", "bbb", "ccc"], ", ", 9) == ["aaa, bbb,", "ccc"]
    assert cells.join_fitting([], ", ", 9) == []


def test_wrapping_folds_long_words() -> None:
    assert cells.wrapped("ab " + "x" * 12, 10) == ["ab", "x" * 10, "xx"]


def test_words_of_a_command_are_quoted_only_where_needed() -> None:
    assert formatting.quoted("D:\\big\\runs-1") == "D:\\big\\runs-1"
    assert formatting.quoted("my runs") == '"my runs"'


def test_paths_below_the_current_folder_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert formatting.shown_path(tmp_path / "runs" / "a") == "runs/a"
    assert formatting.shown_path("elsewhere/b") == "elsewhere/b"
    assert formatting.shown_path(tmp_path.parent) == str(tmp_path.parent)
