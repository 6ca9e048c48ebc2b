import io
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from support.run_events import (
    START_S,
    STEP_SECONDS,
    adaptation,
    checkpoint_event,
    done_event,
    eval_event,
    loading,
    run_event,
    run_events,
    sample_event,
    step_event,
    warning,
)
from support.run_plans import run_plan

from qlora_profiles.events import Event, StepEvent
from qlora_profiles.hardware import Gpu
from qlora_run.report.formatting import clock, ends_at
from qlora_run.report.run_state import RunState, fold
from qlora_run.terminal.console import make_console
from qlora_run.terminal.drawing import Drawing
from qlora_run.terminal.glyphs import ASCII, UNICODE, Glyphs
from qlora_run.terminal.live import LiveView
from qlora_run.terminal.plain import PlainView
from qlora_run.terminal.run_view import run_view
from qlora_run.terminal.temperature import gpu_thermometer

PLAN = run_plan()
OUTPUT = Path("runs/a")


def drawn(events: list[Event], now_s: float | None = None, width: int = 80, **more: Any) -> list[str]:
    now_s = events[-1].time_s if now_s is None else now_s
    fields: dict[str, Any] = {"glyphs": ASCII} | more
    return Drawing(state=fold(events), plan=PLAN, now_s=now_s, width=width, **fields).lines()


class Terminal(io.TextIOWrapper):
    """A stream that says it is a terminal."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\n")

    def isatty(self) -> bool:
        return True


def bytes_of(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue()


def told(events: list[Event], start: RunState | None = None) -> list[str]:
    """What the plain view prints of these events, the opening line left out."""
    out = io.StringIO()
    view, state = PlainView(make_console(out), PLAN, OUTPUT), start or RunState()
    for event in events:
        state = state.after(event)
        view.event(event, state)
    return out.getvalue().splitlines()


def test_the_drawing_in_the_middle_of_a_run() -> None:
    events = [e for e in run_events(366) if e.time_s <= step_event(148).time_s]
    now_s = step_event(148).time_s
    assert drawn(events, now_s, celsius=71) == [
        f"step   148/366 [########............] 40%   ends {ends_at(now_s, 218 * STEP_SECONDS)}",
        "loss   train 2.18 #*=--::...______ 1.22   val 2.11 -> 1.38",
        "speed  1,496 tok/s (plan 1,301)   9.8 of 11.2 GiB VRAM (plan 10.0)   71 C",
        "saved  step 100, 8 min ago | Ctrl-C saves and stops",
        "sample Refund after 30 days?",
        "       before: I am an AI. Ask me.",
        f"{clock(adaptation(25).time_s)}  out of memory: token-budget 4,096 -> 2,048 (step 25 redone, same recipe)",
    ]


def test_before_the_first_step_there_is_progress_too() -> None:
    assert drawn(loading(), START_S + 7) == [
        "done   preparing data                   4 s",
        "now    loading the model                3 s   [#######.............] 12/36",
    ]
    assert Drawing(state=RunState(), plan=PLAN, now_s=0.0, glyphs=ASCII, width=80).lines() == ["now    starting"]


def test_the_last_drawing_keeps_what_lasts() -> None:
    lines = drawn(run_events(100), over=True)
    assert lines[0] == "step   100/100 [####################] 100%   took 17 min"
    assert [line.split()[0] for line in lines[1:3]] == ["loss", "speed"]
    assert len(lines) == 4


def test_silence_is_named_once_it_is_unusual() -> None:
    events: list[Event] = [run_event(50), *(step_event(n) for n in range(1, 9))]
    last_s = events[-1].time_s
    assert not any(line.startswith("quiet") for line in drawn(events, last_s + 59))
    assert drawn(events, last_s + 180)[-1] == "quiet  no news for 3 min; a step takes 10 s, see run.log"
    busy: list[Event] = [*events, *loading()[:1]]
    assert not any(line.startswith("quiet") for line in drawn(busy, last_s + 180))


def test_warnings_are_readable_to_their_end() -> None:
    text = "the tokenizer has no pad token, so the end of text takes its place; " * 2
    lines = drawn([*loading(), warning(text.strip()), *[warning(f"w{i}") for i in range(2)]])
    assert " ".join(" ".join(lines).split()).count("takes its place") == 2
    assert drawn([warning(f"w{i}") for i in range(9)])[-1].endswith("w8")
    assert len(drawn([warning(f"w{i}") for i in range(9)])) == 4


def test_nothing_saved_yet_says_when_it_will_be() -> None:
    lines = drawn([run_event(366), step_event(1)])
    assert lines[-1] == "saved  nothing yet, first at step 50 | Ctrl-C saves and stops"
    assert "first at step 20" in drawn([run_event(20), step_event(1)])[-1]


@pytest.mark.parametrize("glyphs", [ASCII, UNICODE])
@pytest.mark.parametrize("width", [80, 60, 120])
def test_every_drawing_stays_in_its_width_and_in_gbk(glyphs: Glyphs, width: int) -> None:
    events = run_events(60, every=10)
    events.insert(-3, sample_event(50, "退款" * 80 + "\x1b[2J"))
    events.insert(9, warning("长" * 100))
    state = RunState()
    for event in events:
        state = state.after(event)
        lines = Drawing(state=state, plan=PLAN, now_s=event.time_s, glyphs=glyphs, width=width).lines()
        assert max(map(cell_len, lines)) <= width
        assert all(line.isprintable() for line in lines)
        if glyphs is ASCII:
            assert "\n".join(lines).encode("gbk")


@pytest.mark.parametrize("encoding", ["gbk", "utf-8", "ascii"])
def test_the_live_view_on_a_terminal(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal(encoding)
    view = run_view(PLAN, OUTPUT, out)
    assert isinstance(view, LiveView)
    state = RunState()
    view.begin(state)
    for event in run_events(30, every=10):
        state = state.after(event)
        view.event(event, state)
        view.tick(state)
    view.say("Saving after this step...")
    view.end(state, None)
    text = re.sub(r"\x1b\[[0-9;]*m", "", bytes_of(out).decode(encoding))
    assert "Training Qwen3-8B on my.jsonl -> runs/a" in text
    assert "step   30/30" in text
    assert "Saving after this step..." in text
    assert text.rstrip().endswith("qlora-run replay runs/a")
    assert "\x1b[?25h" in text.split("step   30/30")[-1]  # the cursor is back


def test_a_terminal_that_cannot_be_drawn_over_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(run_view(PLAN, OUTPUT, Terminal("utf-8")), PlainView)
    assert isinstance(run_view(PLAN, OUTPUT, io.StringIO()), PlainView)


def test_a_card_that_cannot_be_asked_has_no_temperature() -> None:
    report = msgspec.structs.replace(PLAN.report, gpus=(Gpu(name="gone", uuid="GPU-00000000-no-such-card"),))
    assert gpu_thermometer(report.gpus)() is None
    assert gpu_thermometer(PLAN.cards())() is None


def test_plain_lines_of_a_short_run() -> None:
    lines = told(run_events(12, every=6))
    assert [line[7:] for line in lines] == [
        "preparing data",
        "loading the model",
        "started: 12 steps (plan: 1,301 tok/s, 10.0 GiB, 62-80 min)",
        "sample 'Refund after 30 days?': I am an AI. Ask me.",
        "val loss 2.11 (before training; 50 held-out rows, 2 s)",
        f"step 1/12  loss 2.18  lr 2e-4  1,496 tok/s  9.8 GiB  ends {clock(step_event(1).time_s + 11 * 11.5)}",
        "out of memory: token-budget 4,096 -> 2,048 (step 3 redone, same recipe)",
        f"step 4/12  loss 2.10  lr 2e-4  1,496 tok/s  9.8 GiB  ends {clock(step_event(12).time_s)}",
        "val loss 2.16 (step 6, the best; 50 held-out rows, 2 s)",
        "saved step 6",
        f"step 7/12  loss 2.04  lr 2e-4  1,496 tok/s  9.8 GiB  ends {clock(step_event(12).time_s)}",
        f"step 10/12  loss 1.98  lr 2e-4  1,496 tok/s  9.8 GiB  ends {clock(step_event(12).time_s)}",
        "step 12/12  loss 1.94  lr 2e-4  1,496 tok/s  9.8 GiB",
        "val loss 2.04 (step 12, the best; 50 held-out rows, 2 s)",
        "saved step 12",
        "sample 'Refund after 30 days?': Refunds close on day 30.",
    ]
    assert all(line[:7] == f"{clock(START_S)[:3]}{line[3:5]}  " for line in lines)


def steps_printed(lines: list[str]) -> list[int]:
    return [int(line.split()[2].split("/")[0].replace(",", "")) for line in lines if line[7:].startswith("step ")]


def quick_steps(count: int, pace_seconds: float) -> list[StepEvent]:
    return [step_event(n, time_s=START_S + n * pace_seconds) for n in range(1, count + 1)]


def test_fast_steps_get_a_line_a_second_and_slow_ones_a_line_each() -> None:
    fast = steps_printed(told([run_event(1000), *quick_steps(1000, 0.01)]))
    assert fast == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901, 1000]
    medium = steps_printed(told([run_event(30), *quick_steps(30, 1.0)]))
    assert medium == [1, 11, 21, 30]
    slow = steps_printed(told([run_event(4), *quick_steps(4, 45.0)]))
    assert slow == [1, 2, 3, 4]


def test_the_last_step_before_a_stop_gets_its_line() -> None:
    events: list[Event] = [run_event(100), *quick_steps(7, 0.5), checkpoint_event(7), done_event(7, "interrupted", 130)]
    assert steps_printed(told(events)) == [1, 7]


def test_a_process_that_made_no_step_repeats_none_of_an_earlier_one() -> None:
    history = fold([run_event(100), *quick_steps(7, 0.5)]).closed()
    assert steps_printed(told([done_event(7, "failed", 2)], history)) == []


def test_a_phase_that_comes_back_is_announced_again() -> None:
    phase = loading()[0]
    lines = told([phase, phase, *quick_steps(1, 1.0), phase])
    assert sum("preparing data" in line for line in lines) == 2


def test_a_resumed_run_says_where_it_goes_on() -> None:
    history = fold([run_event(100), *quick_steps(30, 1.0), eval_event(20, 1.4), checkpoint_event(20)]).closed()
    out = io.StringIO()
    PlainView(make_console(out), PLAN, OUTPUT).begin(history)
    assert out.getvalue() == "Going on from step 20: Qwen3-8B on my.jsonl -> runs/a (log: run.log)\n"
    events: list[Event] = [run_event(100, first_step=21), step_event(21), eval_event(30, 1.5)]
    lines = told(events, history)
    assert lines[0][7:].startswith("resumed at step 21: 100 steps")
    assert "best 1.40 @ 20" in lines[-1]
