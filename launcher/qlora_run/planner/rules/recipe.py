"""The one part of the recipe that is read off the data: how long an example may be."""

from bisect import bisect_right
from typing import Any

from msgspec.structs import replace

from qlora_profiles.errors import QloraRunError, UserError
from qlora_profiles.facts import DataFacts, ModelFacts
from qlora_profiles.plan import Resolved
from qlora_run.planner.context import PlanningContext

USUAL_MAX_LENGTH = 2048
STEP = 64
"""Tokens; lengths read off the data are multiples of the step. Set by hand."""


def usual_length(model: ModelFacts | None = None) -> int:
    """Where rows are cut that nobody sets a length for: 2,048 tokens, or as many as the model reads."""
    limit = model.max_positions if model is not None else None
    return min(USUAL_MAX_LENGTH, limit or USUAL_MAX_LENGTH)


def max_length(s: PlanningContext) -> Resolved:
    """The usual length, less where the data does not need as many: the same rows are cut."""
    if not s.data.exact:
        return Resolved(usual_length(s.model), "default", "usual for instructions; not all rows are counted yet")
    needed = -(-s.data.longest_tokens // STEP) * STEP
    value = max(1, min(usual_length(s.model), needed))
    return Resolved(value, "data", coverage(s, value))


def coverage(s: PlanningContext, value: int) -> str:
    """How much of the data a limit leaves whole: ``covers 100% of rows (the longest has 1,804 tokens)``."""
    longest = s.data.longest_tokens
    if longest <= value:
        return f"covers 100% of rows (the longest has {longest:,} tokens)"
    return f"covers {_share_below(s.data.length_quantiles, value):.0%} of rows whole; longer ones are cut and counted"


def shortened(data: DataFacts, length: int) -> DataFacts:
    """The facts of rows cut at a smaller length than they were counted at, as far as their quantiles tell."""
    if data.longest_tokens <= length:
        return data
    cut = round((1 - _share_below(data.length_quantiles, length)) * data.train_rows)
    return replace(data, rows_cut=max(1, cut, data.rows_cut))


def _share_below(quantiles: tuple[int, ...], value: int) -> float:
    """Share of rows of at most ``value`` tokens, between deciles by straight lines; never quite all."""
    if len(quantiles) < 2:
        return 0.0
    at = bisect_right(quantiles, value)
    if at == 0:
        return 0.0
    if at >= len(quantiles):
        return 0.99
    low, high = quantiles[at - 1], quantiles[at]
    inside = (value - low) / (high - low) if high > low else 0.0
    return min(0.99, (at - 1 + inside) / (len(quantiles) - 1))


def max_length_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    """Longer than the model can read."""
    limit = s.model.max_positions
    if limit is not None and value > limit:
        reads = f"{s.model.name} reads at most {limit:,} tokens"
        return UserError(f"max_length {value:,}: {reads}", f"--max-length {limit}")
    return None
