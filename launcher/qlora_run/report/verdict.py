"""Was anything learned? One rule, so that no run ends cheerfully without a reason.

The thresholds are shares of a loss, set by hand; ``tests/launcher/report/test_verdict.py`` shows what each decides.
"""

import math
from typing import Literal

from msgspec import Struct

from qlora_profiles.events import EvalEvent
from qlora_profiles.plan import RunPlan
from qlora_run.report.formatting import loss_text, number
from qlora_run.report.run_state import RunState

ROW_CHANGE = 0.01
"""A held-out row counts as better or worse when its loss moved by more than this share."""
VAL_DROP = 0.01
"""Held-out rows are the same at every evaluation: a drop by 1% is more than rounding."""
TRAIN_DROP = 0.02
"""Training batches differ from each other: their mean must drop by more."""
RISE = 0.05
"""A training loss that ends so much above its start rose."""
FEWEST_STEPS = 4
"""Fewer prove nothing."""
GUESSING = 0.95
"""Share of ln(vocabulary), the loss of pure guessing, from which on the model is guessing."""
FEW_STEPS, FEW_ROWS = 30, 20
"""Steps that a flat loss may be for want of, and held-out rows too few to speak of memorising."""
HIGH_RATE = 5e-4
"""A learning rate from which on a higher one is no good advice."""


class Verdict(Struct, frozen=True, kw_only=True):
    """``evidence`` are the numbers, ``cause`` what they most likely mean, ``fix`` the setting to change."""

    outcome: Literal["learned", "not learned", "unclear"]
    evidence: str = ""
    cause: str = ""
    fix: str | None = None


class RowChanges(Struct, frozen=True, kw_only=True):
    """How many held-out rows the model predicts better, equally well, or worse than before training."""

    better: int
    equal: int
    worse: int

    @property
    def rows(self) -> int:
        """All of them."""
        return self.better + self.equal + self.worse


def row_changes(state: RunState) -> RowChanges | None:
    """Each held-out row before training against the last evaluation; ``None`` without both."""
    if len(state.evals) < 2 or state.evals[0].step != 0:
        return None
    before, now = state.evals[0].row_losses, state.evals[-1].row_losses
    if not before or len(before) != len(now):
        return None
    better = sum(n < b * (1 - ROW_CHANGE) for b, n in zip(before, now, strict=True))
    worse = sum(not n <= b * (1 + ROW_CHANGE) for b, n in zip(before, now, strict=True))
    return RowChanges(better=better, equal=len(now) - better - worse, worse=worse)


def verdict_of(state: RunState, plan: RunPlan) -> Verdict:
    """Judge a run by its losses.

    In this order: a loss that is no number, nothing to learn from, or guessing among all tokens is not learning,
    whatever else happened. Then held-out rows decide, if they were measured at least twice: the last loss must lie
    1% under the first. Without them the training loss decides: its last fifth 2% under its first fifth.
    Fewer than four steps prove nothing.
    """
    if state.last is None:
        return Verdict(outcome="unclear", evidence="no step was made")
    return _broken(state, plan) or _by_held_out(state, plan) or _by_training(state, plan)


def _broken(state: RunState, plan: RunPlan) -> Verdict | None:
    last, guessing = state.losses.losses[-1], math.log(max(plan.model.vocab_size, 2))
    if not math.isfinite(last):
        evidence = f"the loss became {last} at step {_first_broken(state)}"
        return _not(evidence, "the updates were too large", _rate(plan, 0.25))
    if state.last and (last == 0 or state.last.supervised_tokens == 0):
        cause = "no token of the rows is trained on; their answers are empty, cut away, or not marked by the template"
        return _not("the loss is 0", cause, "qlora-run plan")
    if last >= GUESSING * guessing:
        return _guessing(state, plan, last, guessing)
    return None


def _guessing(state: RunState, plan: RunPlan, last: float, guessing: float) -> Verdict:
    evidence = f"train loss {loss_text(last)} is guessing (ln of {plan.model.vocab_size:,} tokens is {guessing:.2f})"
    if state.losses.losses[0] >= GUESSING * guessing:
        return _not(evidence, "it began there: the base model's weights are untrained or damaged", "another --model")
    return _not(evidence, "training broke the model: the updates were too large", _rate(plan, 0.1))


def _first_broken(state: RunState) -> int:
    return next(p.step for p in state.losses.points if not math.isfinite(p.loss))


def _by_held_out(state: RunState, plan: RunPlan) -> Verdict | None:
    if len(state.evals) < 2:
        return None
    first, last = state.evals[0], state.evals[-1]
    evidence = f"val loss {loss_text(first.loss)} -> {loss_text(last.loss)}"
    if last.loss < first.loss * (1 - VAL_DROP):
        return Verdict(outcome="learned", evidence=evidence)
    return _not(evidence, *_why_not_held_out(state, plan, first, last))


def _why_not_held_out(state: RunState, plan: RunPlan, first: EvalEvent, last: EvalEvent) -> tuple[str, str | None]:
    best, (start, end) = state.best, _ends(state)
    if best and best.loss < first.loss * (1 - VAL_DROP):
        return f"it was best, {loss_text(best.loss)}, at step {best.step}: trained too long", f"--max-steps {best.step}"
    if end < start * (1 - TRAIN_DROP):
        if last.rows < FEW_ROWS:
            return (
                f"the rows were memorised, as far as {last.rows} held-out rows can tell",
                "more varied rows in --data",
            )
        return "the rows were memorised and did not help with others", "more varied rows in --data, or fewer --epochs"
    return _why_flat(state, plan, start, end)


def _by_training(state: RunState, plan: RunPlan) -> Verdict:
    start, end = _ends(state)
    evidence = f"train loss {loss_text(start)} -> {loss_text(end)}"
    if len(state.losses.points) < FEWEST_STEPS:
        return Verdict(outcome="unclear", evidence=f"{evidence}: {state.step} steps are too few to tell")
    if end < start * (1 - TRAIN_DROP):
        return Verdict(outcome="learned", evidence=evidence)
    return _not(evidence, *_why_flat(state, plan, start, end))


def _ends(state: RunState) -> tuple[float, float]:
    """Mean training loss of the first and of the last fifth of the steps."""
    losses = state.losses.losses
    fifth = max(len(losses) // 5, 1)
    return sum(losses[:fifth]) / fifth, sum(losses[-fifth:]) / fifth


def _why_flat(state: RunState, plan: RunPlan, start: float, end: float) -> tuple[str, str]:
    if end > start * (1 + RISE):
        return "the loss rose: the updates were too large", _rate(plan, 0.25)
    if start < 0.1:
        return "the model could already answer these rows", "other --data"
    if state.step < FEW_STEPS or plan.recipe_values().learning_rate >= HIGH_RATE:
        return f"{state.step:,} steps were not enough", _longer(plan)
    return "the updates were too small", _rate(plan, 5)


def _longer(plan: RunPlan) -> str:
    recipe = plan.recipe_values()
    return f"--max-steps {recipe.max_steps * 3}" if recipe.max_steps else f"--epochs {number(recipe.epochs * 3)}"


def _rate(plan: RunPlan, factor: float) -> str:
    return f"--learning-rate {number(plan.recipe_values().learning_rate * factor)}"


def _not(evidence: str, cause: str, fix: str | None) -> Verdict:
    return Verdict(outcome="not learned", evidence=evidence, cause=cause, fix=fix)
