"""Cross entropy of rows of logits in one kernel. Triton compiles from a source file, so it has one to itself.

A program computes one row: it goes through the numbers once for their maximum and sum, and once more to write what the
loss changes by. Triton reads the annotations too: only its own may stand there.
"""

import importlib
from typing import Any

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")


@triton.jit  # type: ignore[untyped-decorator]
def capped(values, cap, CAPPED: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103 - Triton compiles this
    if CAPPED:
        values = cap * (2.0 * tl.sigmoid(2.0 * values / cap) - 1.0)
    return values


@triton.jit  # type: ignore[untyped-decorator]
def cross_entropy(  # type: ignore[no-untyped-def]  # noqa: D103
    logits,
    targets,
    losses,
    cap,
    COLUMNS: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    logits += row.to(tl.int64) * COLUMNS
    target = tl.load(targets + row)
    within = tl.arange(0, BLOCK)
    most, total = float("-inf"), 0.0
    for start in range(0, COLUMNS, BLOCK):
        inside = start + within < COLUMNS
        values = capped(tl.load(logits + start + within, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
        values = tl.where(inside, values, float("-inf"))
        larger = tl.maximum(most, tl.max(values, axis=0))
        total = total * tl.exp(most - larger) + tl.sum(tl.exp(values - larger), axis=0)
        most = larger
    most += tl.log(total)
    at = capped(tl.load(logits + target).to(tl.float32), cap, CAPPED)
    tl.store(losses + row, most - at)
    if GRADIENTS:
        for start in range(0, COLUMNS, BLOCK):
            place = start + within
            inside = place < COLUMNS
            values = capped(tl.load(logits + place, mask=inside, other=0.0).to(tl.float32), cap, CAPPED)
            gradients = tl.exp(values - most) - tl.where(place == target, 1.0, 0.0)
            if CAPPED:
                gradients *= 1.0 - (values / cap) * (values / cap)
            tl.store(logits + place, gradients.to(logits.dtype.element_ty), mask=inside)
