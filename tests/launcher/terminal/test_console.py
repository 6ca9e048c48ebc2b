import io
import subprocess
import sys

import pytest

from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_run.terminal.console import console_glyphs, make_console, print_error
from qlora_run.terminal.glyphs import ASCII, UNICODE, glyphs_for


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def stream(encoding: str, kind: type[io.TextIOWrapper] = io.TextIOWrapper) -> io.TextIOWrapper:
    return kind(io.BytesIO(), encoding=encoding, errors="strict", newline="\n")


def written(to: io.TextIOWrapper) -> str:
    to.flush()
    assert isinstance(to.buffer, io.BytesIO)
    return to.buffer.getvalue().decode(to.encoding)


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp936", "cp1252", "cp437"])
def test_other_encodings_get_ascii_signs(encoding: str) -> None:
    assert glyphs_for(stream(encoding)) is ASCII


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf-16"])
def test_unicode_encodings_get_the_finer_signs(encoding: str) -> None:
    assert glyphs_for(stream(encoding)) is UNICODE


def test_streams_without_an_encoding_hold_text_and_take_everything() -> None:
    assert glyphs_for(io.StringIO()) is UNICODE


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "utf-8"])
@pytest.mark.parametrize("kind", [io.TextIOWrapper, Terminal])
def test_no_letter_breaks_a_console(
    encoding: str, kind: type[io.TextIOWrapper], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = stream(encoding, kind)
    make_console(out).print("退款 ▇ é 😀 [bold]no markup[/bold] :smile:")
    text = written(out)
    assert "[bold]no markup[/bold] :smile:" in text
    assert ("退款" in text) == (encoding != "ascii")


def test_without_a_terminal_there_are_80_columns_and_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = stream("utf-8")
    console = make_console(out)
    console.print("loss", style="bold red")
    assert console.width == 80
    assert written(out) == "loss\n"
    monkeypatch.setenv("COLUMNS", "132")
    assert make_console(stream("utf-8")).width == 132


def test_no_color_is_respected_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    out = stream("utf-8", Terminal)
    make_console(out).print("loss", style="red")
    assert written(out) == "loss\n"


def test_an_error_is_one_line_when_it_fits() -> None:
    out = stream("utf-8")
    print_error(UserError("unknown key epohcs; did you mean epochs?", "qlora-run help epochs"), out)
    assert written(out) == "unknown key epohcs; did you mean epochs?  -> qlora-run help epochs\n"


def test_a_long_error_has_its_fix_on_a_line_of_its_own() -> None:
    out = stream("gbk")
    print_error(EnvironmentProblem("x" * 70, "free 9 GiB · or – plan --cache D:\\big [all]"), out)
    assert written(out) == "x" * 70 + "\n  -> free 9 GiB | or - plan --cache D:\\big [all]\n"


def test_an_error_without_a_fix_ends_with_its_message() -> None:
    out = stream("utf-8")
    print_error(UserError("stopped before the first step; nothing to save"), out)
    assert written(out) == "stopped before the first step; nothing to save\n"


def test_errors_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(UserError("no such folder"))
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no such folder\n")


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, qlora_run.terminal.console, qlora_run.terminal.run_view, qlora_run.terminal.plan_diff;"
        "import qlora_run.supervise.supervisor;"
        "print([m for m in ('rich', 'torch', 'transformers', 'pynvml') if m in sys.modules])"
    )
    import os

    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert result.stdout.strip() == "[]"


def test_a_bar_and_a_sparkline_stay_in_their_width() -> None:
    assert ASCII.bar(0.5, 10) == "#####....."
    assert ASCII.bar(7.0, 4) == "####"
    assert ASCII.sparkline([3, 2, 1], 16) == "#=_"
    assert len(UNICODE.sparkline(list(range(1000)), 16)) == 16
    assert UNICODE.sparkline([1.0, float("nan"), 2.0], 16) == "▁█"
    assert UNICODE.sparkline([1.0, 1.0], 16) == "▄▄"
    assert UNICODE.sparkline([], 16) == ""
    assert len(ASCII.spark) == len(UNICODE.spark)


def test_our_signs_are_spelled_out_in_ascii() -> None:
    assert ASCII.spell("±0.2 · 5 × 3 ≥ 1 → “a” …") == '+/-0.2 | 5 x 3 >= 1 -> "a" ...'
    assert ASCII.spell("退款") == "退款"
    assert console_glyphs(make_console(stream("gbk"))) is ASCII


@pytest.mark.parametrize(
    ("columns", "width"),
    [("0", 80), ("000", 80), ("", 80), ("-5", 80), ("x", 80), ("1", 20), ("20", 20), ("132", 132), ("9" * 20, 1000)],
)
def test_a_width_that_no_line_can_have_is_not_taken(columns: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    out = stream("utf-8")
    console = make_console(out)
    assert console.width == width
    console.print("seen")
    assert written(out) == "seen\n"
