"""Dropout that belongs to the recipe: what is dropped follows from seed, step, example, position, layer and feature.

torch draws from one stream, in the order in which a step happens to be computed. Cut otherwise, after memory ran out
or on another card, the same recipe would drop other values and learn something else. Here the numbers are a hash of
where a value stands, the same in any cut, when a layer is computed again, and on every device. The mask is made again
in backward, and never kept.

The hashes are published integer finalizers: splitmix64 (Steele, Lea and Flood, 2014) for tokens, and lowbias32
(C. Wellons, "Prospecting for hash functions", 2018) for features.
"""

import hashlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qlora_core.kernels.trial import attempt
from qlora_core.kernels.triton_launch import Launcher
from qlora_core.model.packing import Packed
from qlora_core.session.fallback import Warn

Drop = Callable[[Tensor, Tensor, float], Tensor]
"""From values (T x I), a number a row (T, int32) and a share: the values, of which that share is zero, scaled up."""

GOLDEN, FIRST, SECOND = 0x9E3779B9 - 2**32, 0x7FEB352D, 0x846CA68B - 2**32
"""As signed numbers of 32 bits; products of such wrap around."""
BLOCK, WARPS = 1024, 4
MOST_HASHED = {"cpu": 2**18, "cuda": 2**22}
"""Values whose hashes are held at once, of 13 bytes each: what a cache holds, and what no plan needs to count."""


class Places:
    """Where the tokens of the micro-batch in hand stand in a recipe of this ``seed``: a number a token in each layer.

    ``rows`` (layers x T) holds them, for all layers at once: each alone would be a dozen launches of tiny kernels.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._seed, self._device = seed, device
        self._salts: list[int] = []
        self.rows: Tensor | None = None

    def layer(self, name: str) -> int:
        """The place in ``rows`` of the layer of this name, which is known from now on."""
        self._salts.append(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little", signed=True))
        return len(self._salts) - 1

    def at(self, packed: Packed) -> None:
        """Look at another micro-batch. Without places in a step, as when something is only tried, nothing is known."""
        if not packed.places:
            self.rows = None
            return
        numbers = _token_numbers(self._seed, packed.step, packed.places, packed.lengths)
        salts = torch.tensor(self._salts, dtype=torch.int32, device=self._device)
        self.rows = lowbias(salts[:, None] + torch.from_numpy(numbers).to(self._device))


def _token_numbers(seed: int, step: int, places: tuple[int, ...], lengths: tuple[int, ...]) -> NDArray[np.int32]:
    """A number for each token (T), from the seed, the step, its example's place in the step, and its position."""
    begun = _splitmix(_splitmix(np.array([seed], dtype=np.uint64)) + np.uint64(step))
    examples = _splitmix(begun + np.array(places, dtype=np.uint64))
    positions = np.concatenate([np.arange(length, dtype=np.uint64) for length in lengths])
    numbers = _splitmix(examples.repeat(lengths) + positions)
    return (numbers & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def drop(x: Tensor, rows: Tensor, share: float) -> Tensor:
    """``Drop`` in torch's own words, on any device; some rows at a time, as hashes take more room than values."""
    out = x * (1.0 / (1.0 - share))
    size = max(1, MOST_HASHED.get(x.device.type, 2**20) // x.shape[-1])
    for part, numbers in zip(out.split(size), rows.split(size), strict=True):
        part.masked_fill_(~kept(numbers, x.shape[-1], share), 0.0)
    return out


def kept(rows: Tensor, features: int, share: float) -> Tensor:
    """Which values stay (T x I, bool), each with probability 1 - ``share``."""
    columns = torch.arange(features, dtype=torch.int32, device=rows.device) * GOLDEN
    stays: Tensor = lowbias(rows[:, None] + columns[None]) >= threshold(share)
    return stays


def threshold(share: float) -> int:
    """The least number of 32 bits, signed, that is kept."""
    return round(share * 2**32) - 2**31


def lowbias(x: Tensor) -> Tensor:
    """The hash of int32 numbers; writes over ``x``."""
    x ^= _shifted(x, 16)
    x *= FIRST
    x ^= _shifted(x, 15)
    x *= SECOND
    x ^= _shifted(x, 16)
    return x


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left: torch's own shift repeats the sign."""
    moved: Tensor = (x >> bits) & (2 ** (32 - bits) - 1)
    return moved


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, share: float, how: Drop) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.share, ctx.how = share, how
        return how(x, rows, share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (rows,) = ctx.saved_tensors
        return ctx.how(grad, rows, ctx.share), None, None, None


class KeyedDropout(nn.Module):
    """``torch.nn.Dropout`` in front of one adapter, whose numbers ``places`` and the layer's ``name`` tell.

    Where it meets other values than one row a token of the micro-batch, rows are told apart by their order in it.
    """

    def __init__(self, share: float, places: Places, name: str, how: Drop = drop) -> None:
        super().__init__()
        self.p = share
        self._places, self._how = places, how
        self._layer = places.layer(name)

    def forward(self, x: Tensor) -> Tensor:
        """The values, some of them zero while training."""
        if not self.training or self.p == 0.0:
            return x
        if self._places.rows is None:
            return nn.functional.dropout(x, self.p)
        flat, rows = x.reshape(-1, x.shape[-1]), self._places.rows[self._layer]
        if len(flat) != len(rows):
            rows = lowbias(torch.arange(len(flat), dtype=torch.int32, device=x.device) * GOLDEN + rows[0])
        dropped: Tensor = _Dropped.apply(flat, rows, self.p, self._how)  # type: ignore[no-untyped-call]
        return dropped.view(x.shape)


def key_dropout(adapted: Any, seed: int, device: torch.device, warn: Warn) -> Places:
    """Let every adapter of a PEFT model drop by place; returns what must be told where a micro-batch stands."""
    from peft.tuners.lora import LoraLayer

    places, how = Places(seed, device), _fastest(device, warn)
    for name, layer in adapted.named_modules():
        if isinstance(layer, LoraLayer):
            for adapter, module in layer.lora_dropout.items():
                if isinstance(module, nn.Dropout):
                    layer.lora_dropout[adapter] = KeyedDropout(module.p, places, name, how)
    return places


def _fastest(device: torch.device, warn: Warn) -> Drop:
    if device.type != "cuda":
        return drop
    plain: Drop = drop
    return attempt("dropout (triton)", lambda: _tried_triton(device), plain, instead="torch's own words", warn=warn)


def _tried_triton(device: torch.device) -> Drop:
    """The kernel, which drops just what torch's words drop.

    Raises:
        ArithmeticError: it drops others. What Triton raises else.
    """
    launch = Launcher(import_module("qlora_core.kernels.keyed_dropout_triton").drop)

    def fast(x: Tensor, rows: Tensor, share: float) -> Tensor:
        x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
        blocks = -(-x.numel() // BLOCK)
        kind = (x.device, x.dtype)
        numbers = (x.numel(), x.shape[-1], threshold(share), 1.0 / (1.0 - share), BLOCK)
        launch(kind, blocks, (x, rows, out), *numbers, warps=WARPS)
        return out

    x = torch.ones(67, 130, device=device)
    rows = lowbias(torch.arange(67, dtype=torch.int32, device=device))
    if not fast(x, rows, 0.3).equal(drop(x, rows, 0.3)):
        raise ArithmeticError("it drops other values")
    return fast
