"""The hash of ``keyed_dropout``, its comparison and the product with the values in one kernel. Triton compiles from a
source file, so it has one to itself; it reads the annotations too, and only its own may stand there.
"""

import importlib
from typing import Any

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")


@triton.jit(do_not_specialize=["count", "columns", "threshold", "scale"])  # type: ignore[untyped-decorator]
def drop(x, rows, out, count, columns, threshold, scale, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    row = places // columns
    column = (places - row * columns).to(tl.uint32)
    number = tl.load(rows + row, mask=inside, other=0).to(tl.uint32, bitcast=True) + column * 0x9E3779B9
    number = number ^ (number >> 16)
    number = number * 0x7FEB352D
    number = number ^ (number >> 15)
    number = number * 0x846CA68B
    number = number ^ (number >> 16)
    stays = number.to(tl.int32, bitcast=True) >= threshold
    values = tl.load(x + places, mask=inside, other=0.0)
    scaled = (values.to(tl.float32) * scale).to(values.dtype)
    tl.store(out + places, tl.where(stays, scaled, 0.0), mask=inside)
