"""What the speed comparison makes of its children's answers."""

import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

OPTIONS = SimpleNamespace(warmup=1, first_tolerance=5e-3, mean_tolerance=1e-2, model="m", method="lora", steps=3)
OPTIONS.cap_gib, OPTIONS.examples_per_step = None, 8
FACTS = {"card": None, "rows": 9, "mean_tokens": 50.0, "longest_tokens": 99, "params": 1_000_000}


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    yield import_module("speed")
    for name in ("speed", "speed_runs"):
        sys.modules.pop(name, None)


def result(speed: Any, who: str, **changes: Any) -> Any:
    values: dict[str, Any] = {"how": "", "started": 0.0, "ends": (5.0, 6.0, 7.0), "tokens": (100, 100, 200)}
    return speed.Result(who=who, **(values | {"losses": (2.0, 1.9, 1.8)} | changes))


def test_speed_counts_real_tokens_behind_the_warmup(speed: Any) -> None:
    assert result(speed, "ours").tokens_per_second(1) == 150.0
    assert result(speed, "ours").first_step_seconds == 5.0


def test_steps_of_ours_end_when_the_card_is_done_with_them_not_when_they_are_written_down(speed: Any) -> None:
    """On a card an event is written while the next step runs: a run of two steps in a second would seem to take one."""
    steps = [SimpleNamespace(time_s=at, step_seconds=2.0) for at in (103.9, 105.9, 106.0)]
    assert speed.runs.ends_of(steps, on_card=True) == (102.0, 104.0, 106.0)
    assert speed.runs.ends_of(steps, on_card=False) == (103.9, 105.9, 106.0)


def test_what_counts_as_the_same_learning(speed: Any) -> None:
    ours = result(speed, "ours")
    assert speed.agrees(result(speed, "trl", losses=(2.001, 1.9, 1.8)), ours, OPTIONS) is True
    assert speed.agrees(result(speed, "trl", losses=(2.1, 1.9, 1.8)), ours, OPTIONS) is False
    assert speed.agrees(result(speed, "trl", losses=(2.0, 1.9, 1.5)), ours, OPTIONS) is False
    assert speed.agrees(result(speed, "trl", tokens=(100, 101, 200)), ours, OPTIONS) is False
    assert speed.agrees(result(speed, "trl", same_recipe=False), ours, OPTIONS) is None
    assert speed.agrees(ours, ours, OPTIONS) is None


def test_the_report_has_a_line_for_each_and_the_floor(speed: Any) -> None:
    slow = result(speed, "trl", ends=(5.0, 7.0, 9.0))
    full = speed.Result(who="unsloth", how="best", started=0.0, oom=True, error="out of memory: long story")
    text = speed.report([result(speed, "ours"), slow, full], FACTS, 4e9, OPTIONS)
    assert "| trl |  | 133 | 75 | 2.00× |" in text
    assert "| unsloth | best | out of memory |" in text
    assert "1,000 tokens/s; 667 where every layer recomputes" in text
