"""A kernel as small as they come. Triton compiles from a source file, so it has one to itself.

Triton reads the annotations too: only its own may stand there.
"""

import importlib
from typing import Any

triton: Any = importlib.import_module("triton")
tl: Any = importlib.import_module("triton.language")


@triton.jit  # type: ignore[untyped-decorator]
def double(x, out, count, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: D103 - Triton compiles this
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    tl.store(out + places, 2 * tl.load(x + places, mask=inside), mask=inside)
