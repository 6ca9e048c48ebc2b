"""Optimizer steps as the data make them: lengths drawn from their distribution, cut as the step cuts them."""

import random
from collections.abc import Sequence
from functools import lru_cache

from qlora_core.execution.micro_batches import make_micro_batches
from qlora_profiles.facts import DataFacts

MOST_STEPS, ROWS, LARGE_STEP = 8, 128, 10_000
"""So many steps are sampled, fewer where each has many rows, and one where it is large: set by hand."""
SCALINGS = 8
"""Until the mean is right: what is cut off at the longest is missing elsewhere. Set by hand."""

Steps = tuple[tuple[int, ...], ...]
"""Tokens of each example, or of each micro-batch, of each step."""


def sampled_steps(data: DataFacts, examples: int, max_length: int) -> Steps:
    """Lengths (tokens) of the examples of a few steps; always the same ones. Their mean is the data's.

    A step has no more examples than there are rows to train on.
    """
    return _sampled(data.length_quantiles, data.mean_tokens, min(examples, max(1, data.train_rows)), max_length)


@lru_cache(maxsize=64)
def _sampled(quantiles: tuple[int, ...], mean_tokens: float, examples: int, max_length: int) -> Steps:
    rng, count = random.Random(0), max(4, min(MOST_STEPS, ROWS // examples)) if examples < LARGE_STEP else 1
    drawn = [min(_at(quantiles, rng.random()), max_length) for _ in range(count * examples)]
    wanted = max(1.0, min(mean_tokens, float(max_length))) * len(drawn)
    for _ in range(SCALINGS):
        factor = wanted / sum(drawn) if sum(drawn) else 1.0
        drawn = [max(1.0, min(length * factor, float(max_length))) for length in drawn]
    rows = scaled([drawn], 1.0, max_length)[0]
    return tuple(rows[i : i + examples] for i in range(0, len(rows), examples))


def scaled(steps: Sequence[Sequence[float]], factor: float, longest: int) -> Steps:
    """The same steps with examples ``factor`` times as long, none above ``longest`` tokens or below one."""
    return tuple(tuple(max(1, min(longest, round(length * factor))) for length in step) for step in steps)


def _at(quantiles: Sequence[int], share: float) -> float:
    """The length that ``share`` of the rows do not exceed, by straight lines between the quantiles."""
    if len(quantiles) < 2:
        return float(quantiles[0]) if quantiles else 0.0
    place = share * (len(quantiles) - 1)
    below = int(place)
    low, high = quantiles[below], quantiles[min(below + 1, len(quantiles) - 1)]
    return low + (place - below) * (high - low)


def micro_batches(steps: Steps, token_budget: int) -> Steps:
    """Tokens of each micro-batch of each step."""
    return tuple(
        tuple(sum(lengths[i] for i in batch) for batch in make_micro_batches(lengths, token_budget))
        for lengths in steps
    )
