import math

import pytest
from support.run_events import eval_event, falling, run_event, run_events, step_event
from support.run_plans import run_plan

from qlora_profiles.events import EvalEvent, Event
from qlora_run.report.run_state import RunState, fold
from qlora_run.report.verdict import RowChanges, row_changes, verdict_of

PLAN = run_plan({"learning_rate": 2e-4})
LN_VOCAB = math.log(PLAN.model.vocab_size)


def trained(*losses: float, evals: tuple[float, ...] = ()) -> RunState:
    """Steps with these losses; held-out losses before them and, evenly, along them."""
    events: list[Event] = [run_event(len(losses)), *([eval_event(0, evals[0])] if evals else [])]
    events += [step_event(i + 1, loss) for i, loss in enumerate(losses)]
    between = max(len(evals) - 1, 1)
    events += [eval_event(len(losses) * (i + 1) // between, loss) for i, loss in enumerate(evals[1:])]
    return fold(sorted(events, key=lambda event: event.time_s))


FALLING = [falling(step) for step in range(1, 101)]
FLAT = [2.0, 2.01] * 50


def test_a_falling_held_out_loss_is_learning() -> None:
    verdict = verdict_of(fold(run_events(100)), PLAN)
    assert verdict.outcome == "learned"
    assert verdict.evidence.startswith("val loss 2.11 -> 1.38")
    assert verdict.fix is None


@pytest.mark.parametrize(
    ("state", "cause", "fix"),
    [
        (trained(*FLAT, evals=(2.0, 2.0)), "too small", "--learning-rate 0.001"),
        (trained(*FLAT), "too small", "--learning-rate 0.001"),
        (trained(*FLAT[:10]), "10 steps were not enough", "--epochs 9"),
        (trained(*FALLING, evals=(2.0, 2.1)), "memorised", "more varied rows in --data, or fewer --epochs"),
        (trained(*FALLING, evals=(2.0, 1.5, 2.4)), "trained too long", "--max-steps 50"),
        (trained(*reversed(FALLING)), "rose", "--learning-rate 5e-5"),
        (trained(2.0, 1.9, 1.8, math.nan), "too large", "--learning-rate 5e-5"),
        (trained(2.0, 3.0, LN_VOCAB, LN_VOCAB), "broke the model", "--learning-rate 2e-5"),
        (trained(LN_VOCAB, LN_VOCAB, LN_VOCAB, LN_VOCAB), "untrained or damaged", "another --model"),
        (trained(0.0, 0.0, 0.0, 0.0, 0.0), "no token of the rows is trained on", "qlora-run plan"),
        (trained(*[0.05] * 40), "already answer", "other --data"),
    ],
)
def test_what_was_not_learned_is_said_with_its_likely_cause(state: RunState, cause: str, fix: str) -> None:
    verdict = verdict_of(state, PLAN)
    assert verdict.outcome == "not learned"
    assert cause in verdict.cause
    assert verdict.fix == fix
    assert verdict.evidence


def test_no_higher_rate_is_advised_where_it_is_high_already() -> None:
    flat = trained(*FLAT)
    assert verdict_of(flat, run_plan({"learning_rate": 1e-3})).fix == "--epochs 9"
    assert verdict_of(flat, run_plan({"learning_rate": 1e-3, "max_steps": 100})).fix == "--max-steps 300"


def test_a_step_that_broke_is_named() -> None:
    assert "step 4" in verdict_of(trained(2.0, 1.9, 1.8, math.nan), PLAN).evidence


def test_a_falling_training_loss_counts_where_nothing_was_held_out() -> None:
    assert verdict_of(trained(*FALLING), PLAN).outcome == "learned"


def test_held_out_rows_outweigh_the_training_loss() -> None:
    assert verdict_of(trained(*FLAT, evals=(2.0, 1.5)), PLAN).outcome == "learned"


def test_too_few_steps_prove_nothing() -> None:
    assert verdict_of(trained(2.0, 1.0, 0.5), PLAN).outcome == "unclear"
    assert verdict_of(RunState(), PLAN).outcome == "unclear"


def test_rows_are_compared_with_before_training() -> None:
    before, now = (1.0, 1.0, 1.0, 1.0), (0.5, 1.005, 0.995, 1.5)
    state = fold([eval_event(0, 1.0, before), step_event(1), eval_event(1, 0.9, now)])
    changes = row_changes(state)
    assert changes == RowChanges(better=1, equal=2, worse=1)
    assert changes.rows == 4


@pytest.mark.parametrize(
    "evals",
    [(), (eval_event(0, 1.0, (1.0,)),), (eval_event(5, 1.0, (1.0,)), eval_event(9, 1.0, (1.0,)))],
)
def test_rows_are_not_compared_without_a_before(evals: tuple[EvalEvent, ...]) -> None:
    assert row_changes(fold(evals)) is None
    assert row_changes(fold([eval_event(0, 1.0, (1.0, 2.0)), eval_event(5, 1.0, (1.0,))])) is None


def test_a_row_that_is_no_number_any_more_is_worse() -> None:
    state = fold([eval_event(0, 1.0, (1.0,)), eval_event(5, math.nan, (math.nan,))])
    assert row_changes(state) == RowChanges(better=0, equal=0, worse=1)
