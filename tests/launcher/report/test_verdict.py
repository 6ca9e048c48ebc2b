import math

import msgspec
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
        (trained(*FALLING, evals=(2.0, 2.1)), "memorised", "more varied rows in --data, or fewer --epochs"),
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
    verdict = verdict_of(trained(*FALLING), PLAN)
    assert (verdict.outcome, verdict.evidence) == ("fitted", "train loss 1.98 -> 1.31")


def test_held_out_rows_outweigh_the_training_loss() -> None:
    assert verdict_of(trained(*FLAT, evals=(2.0, 1.5)), PLAN).outcome == "learned"


def rows_moved(before: tuple[float, ...], now: tuple[float, ...], steps: int = 60) -> RunState:
    """Held-out rows before and after steps whose training loss falls."""
    first, last = (eval_event(at, sum(rows) / len(rows), rows) for at, rows in ((0, before), (steps, now)))
    return fold([run_event(steps), first, *(step_event(step) for step in range(1, steps + 1)), last])


MANY = tuple(2.0 + 0.05 * (n % 7) for n in range(40))


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (rows_moved(MANY, tuple(loss - 0.1 for loss in MANY)), "learned"),
        (rows_moved(MANY, tuple(loss + 0.1 for loss in MANY)), "not learned"),
        (rows_moved(MANY, tuple(loss - 0.001 for loss in MANY)), "not learned"),  # certain, and next to nothing
        (rows_moved(MANY, tuple(loss - 0.03 + (-1) ** n * 0.5 for n, loss in enumerate(MANY))), "unclear"),
        (rows_moved((2.0, 2.0), (1.9, 1.4)), "unclear"),
        (rows_moved((2.0,), (1.0,)), "unclear"),
        (rows_moved((2.0, 2.1, 2.2), (1.0, 1.1, 1.2)), "learned"),
        (rows_moved(MANY, tuple(loss - 0.1 for loss in MANY), steps=3), "unclear"),
    ],
)
def test_held_out_rows_must_move_by_more_than_they_differ(state: RunState, outcome: str) -> None:
    assert verdict_of(state, PLAN).outcome == outcome


def test_a_training_loss_must_fall_by_more_than_batches_differ() -> None:
    noise = [0.4 * math.sin(7 * step) for step in range(60)]
    for steps in (4, 10, 29):
        flat = verdict_of(trained(*(2 + noise[n] for n in range(steps))), PLAN)
        assert flat.outcome == "unclear"
        assert f"in {steps} steps, no more than batches differ" in flat.evidence
    assert verdict_of(trained(*(2 + each for each in noise)), PLAN).outcome == "not learned"
    assert verdict_of(trained(*(2 - 0.02 * n + each for n, each in enumerate(noise))), PLAN).outcome == "fitted"
    assert verdict_of(trained(*(2 - 0.1 * n for n in range(10))), PLAN).outcome == "fitted"


def test_what_is_kept_is_judged() -> None:
    state = trained(*FALLING, evals=(2.0, 1.5, 2.4))
    assert verdict_of(state, PLAN).evidence == "val loss 2.00 -> 1.50"
    assert verdict_of(state, PLAN).outcome == "learned"
    last = verdict_of(state, run_plan({"learning_rate": 2e-4, "keep": "last"}))
    assert (last.outcome, last.fix) == ("not learned", "--max-steps 50")
    assert "trained too long" in last.cause


def test_a_loss_that_falls_from_guessing_and_stays_high_is_no_learning() -> None:
    high = verdict_of(trained(*FALLING, evals=(LN_VOCAB + 0.8, 8.88)), PLAN)
    assert high.outcome == "unclear"
    assert "began at guessing" in high.evidence
    assert verdict_of(trained(*FALLING, evals=(LN_VOCAB + 0.8, 1.2)), PLAN).outcome == "learned"


def test_a_base_that_is_surely_wrong_and_comes_down_is_not_called_damaged() -> None:
    high = tuple(LN_VOCAB + 2 + 0.05 * (n % 7) for n in range(40))
    bases: list[Event] = [eval_event(0, LN_VOCAB + 2, high), *(step_event(step, LN_VOCAB + 3) for step in range(1, 11))]
    fell = tuple(loss - 0.5 for loss in high)
    came_down = verdict_of(fold([run_event(10), *bases, eval_event(10, LN_VOCAB + 1.5, fell)]), PLAN)
    assert came_down.outcome == "unclear"
    assert "began at guessing" in came_down.evidence
    stayed = verdict_of(fold([run_event(10), *bases, eval_event(10, LN_VOCAB + 2, high)]), PLAN)
    assert (stayed.outcome, stayed.fix) == ("not learned", "another --model")
    assert "untrained or damaged, or its tokenizer another's" in stayed.cause


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_few_steps_of_a_base_that_guesses_are_too_few_to_tell(steps: int) -> None:
    few = verdict_of(trained(*[LN_VOCAB + 1] * steps, evals=(LN_VOCAB + 1, LN_VOCAB)), PLAN)
    assert few.outcome == "unclear"
    assert few.evidence.startswith(f"val loss {LN_VOCAB + 1:.2f} -> {LN_VOCAB:.2f}: "), "batches differ, rows do not"
    assert "too few to tell" in few.evidence


def test_a_single_step_that_the_warm_up_took_taught_nothing() -> None:
    only = msgspec.structs.replace(step_event(1, 2.0), learning_rate=0.0)
    verdict = verdict_of(fold([run_event(1), only]), PLAN)
    assert (verdict.outcome, verdict.fix) == ("not learned", "--warmup-ratio 0, or more steps")
    assert verdict_of(fold([run_event(2), only, step_event(2, 1.9)]), PLAN).outcome == "unclear"


def test_too_few_steps_prove_nothing() -> None:
    assert verdict_of(trained(2.0, 1.0, 0.5), PLAN).outcome == "unclear"
    assert verdict_of(RunState(), PLAN).outcome == "unclear"


def test_rows_are_compared_with_before_training() -> None:
    before, now = (1.0, 1.0, 1.0, 1.0), (0.5, 1.005, 0.995, 1.5)
    state = fold([eval_event(0, 1.0, before), step_event(1), eval_event(1, 0.9, now)])
    changes = row_changes(state, PLAN)
    assert changes == RowChanges(better=1, equal=2, worse=1)
    assert changes.rows == 4


@pytest.mark.parametrize(
    "evals",
    [(), (eval_event(0, 1.0, (1.0,)),), (eval_event(5, 1.0, (1.0,)), eval_event(9, 1.0, (1.0,)))],
)
def test_rows_are_not_compared_without_a_before(evals: tuple[EvalEvent, ...]) -> None:
    assert row_changes(fold(evals), PLAN) is None
    assert row_changes(fold([eval_event(0, 1.0, (1.0, 2.0)), eval_event(5, 1.0, (1.0,))]), PLAN) is None


def test_a_row_that_is_no_number_any_more_is_worse() -> None:
    state = fold([eval_event(0, 1.0, (1.0,)), eval_event(5, math.nan, (math.nan,))])
    assert row_changes(state, PLAN) == RowChanges(better=0, equal=0, worse=1)
