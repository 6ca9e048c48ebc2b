"""Was anything learned? One rule, so that no run ends cheerfully without a reason.

The thresholds are shares of a loss, set by hand; ``tests/launcher/report/test_verdict.py`` shows what each decides.
"""

import math
from typing import Literal

from msgspec import Struct

from qlora_profiles.events import EvalEvent
from qlora_profiles.plan import RunPlan
from qlora_run.report.formatting import loss_text, number
from qlora_run.report.noise import paired, trend
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
BLUR = 0.05
"""Noise of so large a share of the loss hides what there may be to see: then nothing is said."""
GUESSING = 0.95
"""Share of ln(vocabulary), the loss of pure guessing, from which on the model is guessing."""
FEW_STEPS, FEW_ROWS = 30, 20
"""Steps that a flat loss may be for want of, and held-out rows too few to speak of memorising."""
HIGH_RATE = 5e-4
"""A learning rate from which on a higher one is no good advice."""


class Verdict(Struct, frozen=True, kw_only=True):
    """``evidence`` are the numbers, ``cause`` what they most likely mean, ``fix`` the setting to change.

    "fitted" is what training losses alone can show: the rows trained on are predicted better, and nobody looked at
    others.
    """

    outcome: Literal["learned", "fitted", "not learned", "unclear"]
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


def row_changes(state: RunState, plan: RunPlan) -> RowChanges | None:
    """Each held-out row before training against what is kept; ``None`` without both."""
    pair = _row_losses(state, plan)
    if pair is None:
        return None
    before, now = pair
    better = sum(n < b * (1 - ROW_CHANGE) for b, n in zip(before, now, strict=True))
    worse = sum(not n <= b * (1 + ROW_CHANGE) for b, n in zip(before, now, strict=True))
    return RowChanges(better=better, equal=len(now) - better - worse, worse=worse)


def _row_losses(state: RunState, plan: RunPlan) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Held-out rows' losses before training, and those of what is kept."""
    if len(state.evals) < 2 or state.evals[0].step != 0:
        return None
    before, now = state.evals[0].row_losses, kept_eval(state, plan).row_losses
    return (before, now) if before and len(before) == len(now) else None


def kept_eval(state: RunState, plan: RunPlan) -> EvalEvent:
    """The evaluation of what is kept: the best adapter's, or the last one."""
    recipe = plan.recipe_values()
    keeps_best = recipe.keep == "best" and recipe.method != "full"
    return state.best if keeps_best and state.best else state.evals[-1]


def verdict_of(state: RunState, plan: RunPlan) -> Verdict:
    """Judge a run by its losses.

    In this order: a loss that is no number, or nothing to learn from, is not learning, whatever else happened. Fewer
    than four steps prove nothing. Guessing among all tokens, at the end as well, is not learning, unless the loss came
    down from higher still. Then held-out rows decide, if they were measured at
    least twice: the loss of what is kept must lie 1% under the first, and more than noise would carry it. Without them
    there is only the training loss: a line through it must fall by 2%, and by more than noise.
    """
    if state.last is None:
        return Verdict(outcome="unclear", evidence="no step was made")
    return (
        _broken(state, plan)
        or _too_short(state, plan)
        or _guessing(state, plan)
        or _from_nothing(state, plan)
        or _judged(state, plan)
    )


def _judged(state: RunState, plan: RunPlan) -> Verdict:
    return _by_held_out(state, plan) or _by_training(state, plan)


def _too_short(state: RunState, plan: RunPlan) -> Verdict | None:
    if state.step >= FEWEST_STEPS:
        return None
    steps = f"{state.step} step{'s are' if state.step > 1 else ' is'} too few to tell"
    return Verdict(outcome="unclear", evidence=f"{_seen(state, plan)}: {steps}")


def _seen(state: RunState, plan: RunPlan) -> str:
    """Held-out losses, which are those of the same rows; else the training's."""
    if len(state.evals) > 1:
        return f"val loss {_course(state.evals[0].loss, kept_eval(state, plan).loss)}"
    return f"train loss {_course(*_ends(state))}"


def _from_nothing(state: RunState, plan: RunPlan) -> Verdict | None:
    """A base that guesses before training: a loss that falls from there and stays high says nothing of the task."""
    guessing = math.log(max(plan.model.vocab_size, 2))
    first = state.evals[0].loss if state.evals and state.evals[0].step == 0 else state.losses.losses[0]
    last = kept_eval(state, plan).loss if state.evals else state.losses.losses[-1]
    if first < GUESSING * guessing or last <= guessing / 2:
        return None
    evidence = f"the loss {_course(first, last)} began at guessing (ln of {plan.model.vocab_size:,} tokens is"
    return Verdict(
        outcome="unclear",
        evidence=f"{evidence} {guessing:.2f}): the base model is untrained or damaged, or its tokenizer another's",
    )


def _course(start: float, end: float) -> str:
    return f"{loss_text(start)} -> {loss_text(end)}"


def _broken(state: RunState, plan: RunPlan) -> Verdict | None:
    last = state.losses.losses[-1]
    if not math.isfinite(last):
        evidence = f"the loss became {last} at step {_first_broken(state)}"
        return _not(evidence, "the updates were too large", _rate(plan, 0.25))
    if state.last and (last == 0 or state.last.supervised_tokens == 0):
        cause = "no token of the rows is trained on; their answers are empty, cut away, or not marked by the template"
        return _not("the loss is 0", cause, "qlora-run plan")
    if state.step == 1 and state.last and state.last.learning_rate == 0:
        said = "the learning rate of the only step was 0"
        return _not(said, "it is the one that the warm-up begins with", "--warmup-ratio 0, or more steps")
    return None


def _guessing(state: RunState, plan: RunPlan) -> Verdict | None:
    """The loss ends where guessing among all tokens would be, and did not come down to there."""
    last, guessing = state.losses.losses[-1], math.log(max(plan.model.vocab_size, 2))
    if last < GUESSING * guessing or _fell(state, plan):
        return None
    evidence = f"train loss {loss_text(last)} is guessing (ln of {plan.model.vocab_size:,} tokens is {guessing:.2f})"
    if state.losses.losses[0] >= GUESSING * guessing:
        cause = "it began there: the base model is untrained or damaged, or its tokenizer another's"
        return _not(evidence, cause, "another --model")
    return _not(evidence, "training broke the model: the updates were too large", _rate(plan, 0.1))


def _fell(state: RunState, plan: RunPlan) -> bool:
    """Whether the loss fell by 1% and by more than noise would carry it: of held-out rows, or else the training's."""
    pair = _row_losses(state, plan)
    move, start = (paired(*pair), state.evals[0].loss) if pair else (trend(state.losses.losses), _ends(state)[0])
    return move.certain and move.change < -VAL_DROP * start


def _first_broken(state: RunState) -> int:
    return next(p.step for p in state.losses.points if not math.isfinite(p.loss))


def _by_held_out(state: RunState, plan: RunPlan) -> Verdict | None:
    if len(state.evals) < 2:
        return None
    first, kept = state.evals[0], kept_eval(state, plan)
    evidence = f"val loss {_course(first.loss, kept.loss)}"
    pair = _row_losses(state, plan)
    move = paired(*pair) if pair else None
    if move and not move.certain and move.noise > BLUR * first.loss:
        many = f"{first.rows} held-out row{'s differ' if first.rows > 1 else ' differs'}"
        return Verdict(outcome="unclear", evidence=f"{evidence}, but {many} too much to tell that from chance")
    if kept.loss < first.loss * (1 - VAL_DROP) and (move is None or move.certain):
        return Verdict(outcome="learned", evidence=evidence)
    return _not(evidence, *_why_not_held_out(state, plan, first, kept))


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
    evidence = f"train loss {_course(start, end)}"
    move = trend(state.losses.losses)
    if move.certain and move.change < 0 and end < start * (1 - TRAIN_DROP):
        return Verdict(outcome="fitted", evidence=evidence)
    if state.step < FEW_STEPS and not (move.certain and end > start * (1 + RISE)):
        return Verdict(outcome="unclear", evidence=f"{evidence} in {state.step} steps, no more than batches differ")
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
