"""Norms, norms of heads that are then rotated, and gated activations in one kernel each, forward and backward. Triton
compiles from a source file, so they have one to themselves.

Every tensor is contiguous; rows of ``COLUMNS`` numbers, of which a program takes ``ROWS``. Triton reads the
annotations too: only its own may stand there.
"""

import importlib
from typing import Any

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")


@triton.jit  # type: ignore[untyped-decorator]
def own_rows(rows, COLUMNS: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103 - Triton compiles this
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < COLUMNS)[None, :]
    places = row[:, None] * COLUMNS + column[None, :]
    return row, column, inside, places


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def norm(  # type: ignore[no-untyped-def]  # noqa: D103
    x,
    weight,
    out,
    scale,
    rows,
    epsilon,
    offset,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, column, inside, places = own_rows(rows, COLUMNS, PADDED, ROWS)
    given = tl.load(x + places, mask=inside, other=0.0)
    values = given.to(tl.float32)
    by = tl.rsqrt(tl.sum(values * values, axis=1) / COLUMNS + epsilon)
    tl.store(scale + row, by, mask=row < rows)
    factors = tl.load(weight + column, mask=column < COLUMNS, other=0.0)[None, :]
    values = values * by[:, None]
    if WIDE:
        result = values * (factors.to(tl.float32) + offset)
    else:
        result = values.to(given.dtype).to(tl.float32) * factors.to(tl.float32)
    tl.store(out + places, result.to(given.dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])  # type: ignore[untyped-decorator]
def norm_backward(  # type: ignore[no-untyped-def]  # noqa: D103
    grad,
    x,
    weight,
    scale,
    out,
    rows,
    offset,
    COLUMNS: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, column, inside, places = own_rows(rows, COLUMNS, PADDED, ROWS)
    values = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    factors = tl.load(weight + column, mask=column < COLUMNS, other=0.0).to(tl.float32)[None, :] + offset
    weighed = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32) * factors
    by = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    along = tl.sum(weighed * values, axis=1)[:, None] / COLUMNS
    result = by * (weighed - by * by * along * values)
    tl.store(out + places, result.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def own_halves(rows, heads, HALF: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, PADDED)
    inside = (row < rows)[:, None] & (column < HALF)[None, :]
    places = row[:, None] * (2 * HALF) + column[None, :]
    angles = (row // heads)[:, None] * (2 * HALF) + column[None, :]
    return row, column, inside, places, angles


@triton.jit(do_not_specialize=["rows", "heads"])  # type: ignore[untyped-decorator]
def norm_rope(  # type: ignore[no-untyped-def]  # noqa: D103
    x,
    weight,
    cos,
    sin,
    out,
    scale,
    rows,
    heads,
    epsilon,
    offset,
    WIDE: tl.constexpr,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, column, inside, places, angles = own_halves(rows, heads, HALF, PADDED, ROWS)
    given = tl.load(x + places, mask=inside, other=0.0)
    left, right = given.to(tl.float32), tl.load(x + places + HALF, mask=inside, other=0.0).to(tl.float32)
    by = tl.rsqrt(tl.sum(left * left + right * right, axis=1) / (2 * HALF) + epsilon)
    tl.store(scale + row, by, mask=row < rows)
    of_left = tl.load(weight + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    of_right = tl.load(weight + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :]
    left, right = left * by[:, None], right * by[:, None]
    if WIDE:
        left, right = left * (of_left + offset), right * (of_right + offset)
    else:
        left, right = left.to(given.dtype).to(tl.float32) * of_left, right.to(given.dtype).to(tl.float32) * of_right
    left, right = left.to(given.dtype).to(tl.float32), right.to(given.dtype).to(tl.float32)
    c = tl.load(cos + angles, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angles, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, (left * c - right * s).to(given.dtype), mask=inside)
    tl.store(out + places + HALF, (right * c + left * s).to(given.dtype), mask=inside)


@triton.jit(do_not_specialize=["rows", "heads"])  # type: ignore[untyped-decorator]
def norm_rope_backward(  # type: ignore[no-untyped-def]  # noqa: D103
    grad,
    x,
    weight,
    cos,
    sin,
    scale,
    rows,
    heads,
    offset,
    HALF: tl.constexpr,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
):
    row, column, inside, places, angles = own_halves(rows, heads, HALF, PADDED, ROWS)
    c = tl.load(cos + angles, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + angles, mask=inside, other=0.0).to(tl.float32)
    left = tl.load(grad + places, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(grad + places + HALF, mask=inside, other=0.0).to(tl.float32)
    of_left = tl.load(weight + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :] + offset
    of_right = tl.load(weight + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)[None, :] + offset
    before, after = (left * c + right * s) * of_left, (right * c - left * s) * of_right
    left = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(x + places + HALF, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(scale + row, mask=row < rows, other=0.0)[:, None]
    along = by * by * tl.sum(before * left + after * right, axis=1)[:, None] / (2 * HALF)
    tl.store(grad + places, (by * (before - along * left)).to(grad.dtype.element_ty), mask=inside)
    tl.store(grad + places + HALF, (by * (after - along * right)).to(grad.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def swiglu(gate, up, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0)
    active = (g * tl.sigmoid(g)).to(u.dtype).to(tl.float32)
    tl.store(out + place, (active * u.to(tl.float32)).to(u.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def swiglu_backward(grad, gate, up, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    d = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(gate + place, (d * u * (s + g * s * (1.0 - s))).to(gate.dtype.element_ty), mask=inside)
    tl.store(up + place, (d * g * s).to(up.dtype.element_ty), mask=inside)
