"""Tensors that backward makes again from what is kept anyway, instead of keeping them, too.

A norm keeps its input and a gated activation its gate, so what they make of them costs one cheap kernel. Whoever
would save such a result for its backward asks where it comes from and saves that.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

ATTRIBUTE = "_qlora_made_from"


class Source(NamedTuple):
    """What a tensor was made of, and how."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def rematerializable(function: Callable[..., Tensor], wanted: Callable[[], bool]) -> Callable[..., Tensor]:
    """The same function, whose results say what they were made of while that is wanted."""

    def call(*inputs: Tensor) -> Tensor:
        result = function(*inputs)
        if wanted():
            setattr(result, ATTRIBUTE, Source(function, inputs))
        return result

    return call


def source_of(tensor: Tensor) -> Source | None:
    """What a tensor can be made of again; ``None`` where it has to be kept."""
    return getattr(tensor, ATTRIBUTE, None)
