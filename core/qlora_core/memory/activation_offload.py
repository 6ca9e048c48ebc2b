"""Inputs of recomputing layers that wait in main memory, copied while the card computes.

torch's ``save_on_cpu`` copies in the stream that computes, and waits for the card at each layer. Here a stream of
its own copies: a layer's input leaves while the layer computes, and comes back while the layer behind it is in
backward. No tensor is given to the allocator before the computing stream has waited for its copy.
"""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from qlora_core.execution.pinned_memory import pinned_block

ALIGNED = 512
"""Bytes that the places of tensors in one piece of memory are multiples of."""


class Offload:
    """Keeps what checkpointed layers save, for one model on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies = _Copies(device)
        self._free: list[Tensor] = []
        self._last: weakref.ref[_Kept] | None = None
        self._leaving: _Leaving | None = None

    def around(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpointing function whose inputs wait in main memory."""

        def keeping(*args: Any, **kwargs: Any) -> Any:
            with saved_tensors_hooks(self.pack, self.unpack):
                return checkpoint(*args, **kwargs)

        return keeping

    def pack(self, tensor: Tensor) -> "Tensor | _Kept":
        """Begin to copy a tensor out; the one before it has left by now, or is waited for. What is elsewhere stays."""
        if tensor.device != self.device or not tensor.numel():
            return tensor
        tensor = tensor.detach()
        if self._leaving:
            self._copies.wait(self._leaving.copied)
        kept = _Kept(self, self.take(tensor.nbytes), tensor, self._last)
        self._last = weakref.ref(kept)
        self._leaving = _Leaving(tensor, self._last, self._copies.begin(kept.host, tensor))
        return kept

    def unpack(self, kept: "Tensor | _Kept") -> Tensor:
        """The tensor on the card again, while the one that backward needs next begins to come."""
        if isinstance(kept, Tensor):
            return kept
        tensor = self._still_here(kept)
        if tensor is None:
            self._fetch(kept)
            self._copies.wait(kept.copied)
            tensor, kept.fetched = kept.fetched, None
        assert tensor is not None
        earlier = kept.before() if kept.before else None
        if earlier is not None:
            self._fetch(earlier)
        return tensor

    def _still_here(self, kept: "_Kept") -> Tensor | None:
        """The last tensor that left: it need not come back."""
        if self._leaving is None:
            return None
        (tensor, last, copied), self._leaving = self._leaving, None
        self._copies.wait(copied)
        return tensor if last() is kept else None

    def _fetch(self, kept: "_Kept") -> None:
        if kept.fetched is None:
            kept.fetched = torch.empty(kept.host.shape, dtype=kept.host.dtype, device=self.device)
            kept.copied = self._copies.begin(kept.fetched, kept.host)

    def take(self, num_bytes: int) -> Tensor:
        """Main memory for so many bytes, page-locked for a card; kept for the next tensor when it is given back."""
        fitting = next((i for i, buffer in enumerate(self._free) if buffer.numel() >= num_bytes), None)
        if fitting is not None:
            return self._free.pop(fitting)
        num_bytes = -(-num_bytes // ALIGNED) * ALIGNED
        count, size = pinned_block(num_bytes)
        whole = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        self._free = list(whole.split(num_bytes)[:count])  # all there were are too small
        return self._free.pop()

    def give(self, buffer: Tensor) -> None:
        """Main memory that is needed no more; what is copied next waits for what is copied now."""
        self._free.append(buffer)

    def forget(self, kept: "_Kept") -> None:
        """A tensor that came back and was not asked for: nothing may take its place before its copy has ended."""
        self._copies.wait(kept.copied)


class _Leaving(NamedTuple):
    """The last tensor that was kept, until its copy has left the card."""

    tensor: Tensor
    kept: "weakref.ref[_Kept]"
    copied: Any


class _Kept:
    """One tensor in main memory (``host``), and the one that was kept before it."""

    def __init__(self, owner: Offload, buffer: Tensor, tensor: Tensor, before: "weakref.ref[_Kept] | None") -> None:
        self._owner, self._buffer = owner, buffer
        self.host = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.before = before
        self.fetched: Tensor | None = None
        self.copied: Any = None

    def __del__(self) -> None:
        if self.fetched is not None:
            self._owner.forget(self)
        self._owner.give(self._buffer)


class _Copies:
    """Copies in a stream of their own, one after the other; on a device without streams at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, target: Tensor, source: Tensor) -> Any:
        """Copy behind everything that was asked of the card so far; what to wait for."""
        if self._stream is None:
            target.copy_(source)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            return self._stream.record_event()

    def wait(self, event: Any) -> None:
        """Let what is computed from now on wait for a copy; the host goes on."""
        if event is not None:
            torch.cuda.current_stream(self._device).wait_event(event)
