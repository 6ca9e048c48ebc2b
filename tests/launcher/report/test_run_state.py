import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.run_events import (
    LOADING_SECONDS,
    START_S,
    STEP_SECONDS,
    adaptation,
    checkpoint_event,
    done_event,
    eval_event,
    falling,
    loading,
    run_event,
    run_events,
    sample_event,
    step_event,
    warning,
)

from qlora_profiles.events import Event, PhaseEvent
from qlora_run.report.run_state import MAX_POINTS, RunState, fold


def test_a_whole_run_is_remembered() -> None:
    state = fold(run_events(100))
    assert (state.step, state.steps_total) == (100, 100)
    assert state.losses.losses == [falling(step) for step in range(1, 101)]
    assert [e.step for e in state.evals] == [0, 50, 100]
    assert state.checkpoint is not None
    assert state.checkpoint.step == 100
    assert state.sample_before is not None
    assert state.sample_now is not None
    assert state.done is not None
    assert len(state.adaptations) == 1


@given(st.integers(0, 90))
def test_folding_in_two_parts_is_folding_at_once(cut: int) -> None:
    events = run_events(40, every=10)
    assert fold(events[cut:], fold(events[:cut])) == fold(events)


def test_nothing_changes_an_earlier_state() -> None:
    before = fold(run_events(30)[:20])
    copy = fold(run_events(30)[:20])
    before.after(step_event(99))
    assert before == copy


@pytest.mark.parametrize("killed_at", [21, 25, 39])
def test_a_resumed_run_ends_like_one_that_was_never_killed(killed_at: int) -> None:
    whole = fold(run_events(40, every=10))
    events = run_events(40, every=10)
    first = [e for e in events if not hasattr(e, "step") or e.step <= killed_at][:-1]
    again: list[Event] = [run_event(40, first_step=21, time_s=START_S + 9999)]
    again += [e for e in events if getattr(e, "step", 0) > 20]
    resumed = fold([*first, *again])
    assert resumed.losses == whole.losses
    assert resumed.evals == whole.evals
    assert resumed.best == whole.best
    assert resumed.step == whole.step


def test_what_a_killed_process_did_behind_its_checkpoint_is_forgotten() -> None:
    events: list[Event] = [
        run_event(50),
        eval_event(0, 2.0),
        *(step_event(n) for n in range(1, 31)),
        checkpoint_event(20),
    ]
    state = fold([*events, eval_event(30, 0.1), sample_event(30, "old"), run_event(50, first_step=21)])
    assert state.step == 20
    assert [e.step for e in state.evals] == [0]
    assert [p.step for p in state.losses.points] == list(range(1, 21))
    assert state.sample_now is None
    assert state.checkpoint is not None


def test_a_run_from_the_start_keeps_nothing_but_what_was_measured_before_it() -> None:
    state = fold([*run_events(30), eval_event(0, 1.9), run_event(30)])
    assert (state.step, state.losses.points, state.last, state.checkpoint) == (0, (), None, None)
    assert [e.loss for e in state.evals] == [1.9]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=3000))
def test_the_curve_stays_small_and_keeps_the_mean(losses: list[float]) -> None:
    state = fold([step_event(i + 1, loss) for i, loss in enumerate(losses)])
    points = state.losses.points
    assert len(points) <= MAX_POINTS
    assert sum(p.count for p in points) == len(losses)
    assert sum(p.loss * p.count for p in points) == pytest.approx(sum(losses), abs=1e-6)


def test_a_step_done_again_counts_once() -> None:
    state = fold([step_event(1), step_event(2, 5.0), step_event(2, 1.0)])
    assert state.losses.losses == [falling(1), 1.0]
    assert [s.loss for s in state.recent] == [falling(1), 1.0]


def test_phases_show_progress_until_the_first_step() -> None:
    state = fold([*loading(), PhaseEvent(time_s=START_S + 9, name="loading the model", done=36, total=36)])
    assert [(p.name, p.started_s, p.done) for p in state.phases] == [
        ("preparing data", START_S, None),
        ("loading the model", START_S + 4, 36),
    ]
    assert state.after(step_event(1)).phases == ()


def test_speed_leaves_out_the_step_that_warms_up() -> None:
    slow = step_event(1, step_seconds=60.0)
    assert fold([slow]).tokens_per_second == pytest.approx(14_960 / 60)
    assert fold([slow, step_event(2), step_event(3)]).tokens_per_second == pytest.approx(1496)


def test_time_left_follows_the_pace_and_before_it_the_plan() -> None:
    state = fold([*loading(), run_event(100), step_event(1)])
    assert state.seconds_left(step_event(1).time_s, planned_step_seconds=3.0) == pytest.approx(297)
    state = state.after(step_event(2))
    assert state.seconds_left(step_event(2).time_s + 4, planned_step_seconds=3.0) == pytest.approx(
        98 * STEP_SECONDS - 4
    )
    assert RunState().seconds_left(START_S, 3.0) is None


def test_elapsed_time_adds_up_over_processes_but_not_the_time_between() -> None:
    first = [*loading(), run_event(50), step_event(1), step_event(2)]
    alive = 2 * STEP_SECONDS + LOADING_SECONDS
    assert fold(first).elapsed_seconds() == pytest.approx(alive)
    again = run_event(50, first_step=3, time_s=START_S + 100_000)
    later = step_event(3, time_s=START_S + 100_010)
    assert fold([*first, again, later]).elapsed_seconds() == pytest.approx(alive + 10)
    assert fold([*first, again, later]).elapsed_seconds(START_S + 100_011) == pytest.approx(alive + 11)
    closed = fold(first).closed()
    assert closed.elapsed_seconds(START_S + 100_000) == pytest.approx(alive)


def test_a_new_process_after_a_last_word_starts_a_new_clock() -> None:
    first = fold([*loading(), run_event(10), step_event(1), done_event(1, "interrupted", 130)])
    state = first.after(PhaseEvent(time_s=START_S + 50_000, name="preparing data"))
    assert state.done is None
    assert state.recent == ()
    assert state.elapsed_seconds(START_S + 50_001) == pytest.approx(first.elapsed_seconds() + 1)
    assert state.losses == first.losses


def test_the_best_evaluation_is_one_of_training_and_a_number() -> None:
    state = fold([eval_event(0, 0.5), eval_event(10, math.nan), eval_event(20, 1.5), eval_event(30, 1.7)])
    assert state.best is not None
    assert state.best.step == 20
    assert RunState().best is None


def test_a_warning_said_twice_counts_once_and_adaptations_all() -> None:
    state = fold([warning("slow disk"), adaptation(3), warning("slow disk"), adaptation(9)])
    assert [w.message for w in state.warnings] == ["slow disk"]
    assert [a.step for a in state.adaptations] == [3, 9]


def test_the_peak_is_the_highest_of_all_steps() -> None:
    steps = [step_event(1, vram_peak_bytes=5), step_event(2, vram_peak_bytes=9), step_event(3, vram_peak_bytes=None)]
    assert fold(steps).vram_peak_bytes == 9
    assert fold([*steps, done_event(3, vram_peak_bytes=11)]).vram_peak_bytes == 11
    assert fold([step_event(1, vram_peak_bytes=None)]).vram_peak_bytes is None


def test_the_limits_in_force_are_those_of_the_last_word_about_them() -> None:
    begun = fold([msgspec.structs.replace(run_event(50), limits={"token_budget": 4096, "layers_recomputed": 22})])
    shrunk = begun.after(step_event(1)).after(adaptation(2))
    assert shrunk.limits == {"token_budget": 2048, "layers_recomputed": 22}
    assert shrunk.after(step_event(2)).limits == shrunk.limits
    done = shrunk.after(done_event(2, limits={"token_budget": 1024}))
    assert done.limits == {"token_budget": 1024}
    assert done.closed().limits == {}  # the next process begins as planned


def test_before_its_first_step_only_what_changed_is_known() -> None:
    assert fold([*loading(), adaptation(1)]).limits == {"token_budget": 2048, "layers_recomputed": 22}


def test_what_a_killed_process_computed_within_is_not_what_the_next_one_does() -> None:
    killed = fold([run_event(50), step_event(1), adaptation(2), step_event(2), run_event(50, first_step=2)])
    assert killed.limits == {}
