"""Norms and gated activations in one kernel each, forward and backward. Triton compiles from a source file, so they
have one to themselves.

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
def gated(gate, up, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0)
    active = (g * tl.sigmoid(g)).to(u.dtype).to(tl.float32)
    tl.store(out + place, (active * u.to(tl.float32)).to(u.dtype), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def gated_backward(grad, gate, up, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    d = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=inside, other=0.0).to(tl.float32)
    s = tl.sigmoid(g)
    tl.store(gate + place, (d * u * (s + g * s * (1.0 - s))).to(gate.dtype.element_ty), mask=inside)
    tl.store(up + place, (d * g * s).to(up.dtype.element_ty), mask=inside)
