"""4-bit weights to 16 bits in one kernel. Triton compiles from a source file, so it has one to itself.

Triton reads the annotations too: only its own may stand there.
"""

import importlib
from typing import Any

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")


@triton.jit(do_not_specialize=["count"])  # type: ignore[untyped-decorator]
def dequantize(packed, absmax, absmax_code, absmax_scale, offset, code, out, count, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103 - Triton compiles this
    block = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    inside = block < count
    step = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax_code + step) * tl.load(absmax_scale + block // 256, mask=inside, other=0.0)
    scale = (scale + tl.load(offset))[:, None]
    pairs = tl.load(packed + block[:, None] * 32 + tl.arange(0, 32)[None, :], mask=inside[:, None], other=0)
    pairs = pairs.to(tl.int32)
    values = tl.interleave(tl.load(code + (pairs >> 4)) * scale, tl.load(code + (pairs & 15)) * scale)
    places = block[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + places, values.to(out.dtype.element_ty), mask=inside[:, None])
