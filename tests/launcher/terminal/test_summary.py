import io
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from support.run_events import (
    checkpoint_event,
    done_event,
    eval_event,
    falling,
    run_event,
    run_events,
    sample_event,
    step_event,
)
from support.run_plans import run_plan

from qlora_profiles.errors import UserError
from qlora_profiles.events import Event
from qlora_profiles.plan import RunPlan
from qlora_run.report.run_state import fold
from qlora_run.terminal.console import make_console
from qlora_run.terminal.glyphs import ASCII, UNICODE
from qlora_run.terminal.summary import closing_lines, print_closing

PLAN = run_plan()
OUTPUT = Path("runs/a")


def closing(events: list[Event], plan: RunPlan = PLAN, width: int = 80) -> list[str]:
    return [line.plain for line in closing_lines(fold(events), plan, OUTPUT, ASCII, width)]


def finished(last_val: float = 1.33, rows: tuple[float, ...] = (), **done: Any) -> list[Event]:
    before = (2.0,) * len(rows)
    steps = [step_event(n) for n in range(1, 101)]
    middle, end = eval_event(50, 1.5), eval_event(100, last_val, rows)
    return [run_event(100), eval_event(0, 2.11, before), *steps[:50], middle, *steps[50:], end, done_event(100, **done)]


def test_a_run_that_learned(tmp_path: Path) -> None:
    adapter = tmp_path / "lora_adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"x" * 2048)
    (tmp_path / "training_config.json").write_text("{}")
    files = {name: str(tmp_path / name) for name in ("lora_adapter", "training_config.json")}
    rows = (1.0,) * 41 + (2.0,) * 6 + (2.5,) * 3
    *run, done = finished(rows=rows, artifacts=files)
    assert closing([sample_event(0, "I am an AI."), *run, sample_event(100, "On day 30."), done]) == [
        "Done in 17 min (plan 62-80 min) | peak 9.8 of 11.2 GiB VRAM (plan 10.0)",
        "Learned: val 2.11 -> 1.33",
        "50 unseen rows: 41 better, 6 equal, 3 worse than before training",
        f"adapter  {adapter} (2.0 KiB)",
        f"settings {tmp_path / 'training_config.json'} (2 B)",
        "sample   Refund after 30 days?",
        "         before: I am an AI.",
        "         now:    On day 30.",
        "chat     qlora-run chat runs/a",
        "merge    qlora-run merge runs/a",
        "again    qlora-run replay runs/a",
    ]


def test_a_run_past_its_best_says_so() -> None:
    lines = closing(finished(last_val=1.7))
    assert "Learned: val 2.11 -> 1.70 (best 1.50 @ 50)" in lines
    assert "It was better at step 50: fewer --epochs may do" in lines


def test_a_run_that_did_not_learn_never_ends_cheerfully() -> None:
    flat: list[Event] = [
        run_event(50),
        eval_event(0, 2.0),
        *(step_event(n, 2.0) for n in range(1, 51)),
        eval_event(50, 2.0),
    ]
    lines = closing([*flat, done_event(50)], run_plan({"learning_rate": 1e-6}))
    assert lines[:3] == [
        "NOT LEARNED: val loss 2.00 -> 2.00",
        "  likely because the updates were too small",
        "  -> --learning-rate 5e-6",
    ]
    assert not any(line.startswith(("chat", "merge", "Learned")) for line in lines)
    assert lines[-1].startswith("again")


def test_what_ran_at_the_end_is_said_where_it_is_not_the_plan() -> None:
    ran = {"token_budget": 1024, "layers_recomputed": 29, "cuda_graphs": False, "evaluation_token_budget": 512}
    line = "Ran at the end with token-budget 1,024 (plan 4,096), layers-recomputed 29 (plan"
    found = closing(finished(limits=ran))
    assert found[1:3] == [line.removesuffix(" layers-recomputed 29 (plan"), "layers-recomputed 29 (plan 22)"]
    stopped: list[Event] = [
        run_event(366),
        step_event(1),
        checkpoint_event(1),
        done_event(1, "interrupted", 130, limits=ran),
    ]
    assert closing(stopped, width=120)[1:] == [f"{line} 22)"]
    as_planned = {"token_budget": 4096, "layers_recomputed": 22}
    assert closing(finished(limits=as_planned)) == closing(finished())


def test_a_run_too_short_to_judge_says_so() -> None:
    lines = closing([run_event(2), step_event(1), step_event(2), done_event(2)])
    assert "Cannot tell whether it learned: train loss 2.18 -> 2.15: 2 steps are too few to tell" in lines


def test_a_merged_or_full_model_needs_no_merging() -> None:
    assert not any(line.startswith("merge") for line in closing(finished(artifacts={"final_model": "nowhere"})))
    assert not any(line.startswith("merge") for line in closing(finished(), run_plan({"method": "full"})))


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        (151, ["Stopped. Saved step 151, nothing lost.    Continue: qlora-run resume runs/a"]),
        (150, ["Stopped. Saved step 150, what came after it is lost.", "Continue: qlora-run resume runs/a"]),
    ],
)
def test_a_stop_says_what_is_saved_and_how_to_go_on(saved: int, expected: list[str]) -> None:
    events: list[Event] = [run_event(366), *(step_event(n) for n in range(1, 152)), checkpoint_event(saved)]
    assert closing([*events, done_event(151, "interrupted", 130)]) == expected


def test_a_stop_before_anything_was_saved() -> None:
    lines = closing([done_event(0, "interrupted", 130)])
    assert lines[0] == "Stopped. Nothing was saved yet."
    assert lines[1].startswith("Again: qlora-run --auto --model Qwen/Qwen3-8B --data my.jsonl")


def test_a_failed_run_has_no_summary_but_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    problem = UserError("step 3: the loss is nan", "--learning-rate 5e-5")
    print_closing(make_console(out), fold([done_event(3, "failed", 2)]), PLAN, OUTPUT, problem)
    assert out.getvalue() == ""
    assert capsys.readouterr().err == "step 3: the loss is nan  -> --learning-rate 5e-5\n"


def test_the_summary_can_be_printed_anywhere() -> None:
    events = [*run_events(60, loss=falling)[:-1], sample_event(60, "退款" * 60), done_event(60)]
    lines = closing(events)
    assert "\n".join(lines).encode("gbk")
    assert max(map(cell_len, lines)) <= 80
    unicode = closing_lines(fold(events), PLAN, OUTPUT, UNICODE, 80)
    assert "·" in unicode[0].plain
