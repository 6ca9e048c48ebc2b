"""Triton kernels launched with little for the host to do.

Triton looks at every argument of every launch, to find out which of its compiled forms fits, while a short kernel is
over before the next one is launched. Whoever launches here says what the form depends on, and the first launch of a
kind finds it.
"""

from collections.abc import Hashable
from typing import Any

from torch import Tensor

ALIGNED = 16
"""Bytes that addresses are multiples of in what Triton compiles for tensors as they are made."""


class Launcher:
    """One kernel, whose arguments are tensors and then numbers."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._compiled: dict[Hashable, Any] = {}

    def __call__(self, kind: Hashable, blocks: int, tensors: tuple[Tensor, ...], *numbers: Any, warps: int) -> None:
        """Launch ``blocks`` programs of ``warps`` warps.

        ``kind`` tells apart all that Triton compiles differently, but addresses: devices, formats and constants; for
        what is too rare to tell apart, ``None``.
        """
        kind = kind if all(tensor.data_ptr() % ALIGNED == 0 for tensor in tensors) else None
        compiled = self._compiled.get(kind)
        if compiled is not None:
            compiled[(blocks, 1, 1)](*tensors, *numbers)
            return
        compiled = self._kernel[(blocks,)](*tensors, *numbers, num_warps=warps)
        if kind is not None:
            self._compiled[kind] = compiled
