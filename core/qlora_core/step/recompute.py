"""Which decoder layers keep their activations and which compute them again in backward."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from torch import nn

from qlora_core.step.offload import Offload
from qlora_core.step.spread import spread

_AGAIN = ContextVar("again", default=False)


def computing_again() -> bool:
    """Whether a layer is being computed for its backward: only what that reads is of use."""
    return _AGAIN.get()


@contextmanager
def _again() -> Iterator[None]:
    before = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(before)


def _first_and_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _again()


def decoder_layers(model: nn.Module) -> list[Any]:
    """The layers that can be checkpointed, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_layers(
    model: Any, count: int, preserve_rng_state: bool, offload: bool = False, input_gradients: bool = False
) -> None:
    """Let ``count`` decoder layers recompute their activations, evenly spread over the depth.

    ``preserve_rng_state`` costs time and is needed only where a layer draws random numbers (dropout).
    ``offload`` keeps the layers' inputs in main memory meanwhile. ``input_gradients``: also for the embeddings' result,
    which checkpoints of this kind do not need.
    """
    layers = decoder_layers(model)
    if count == 0:
        model.gradient_checkpointing_disable()
        return
    how = {"use_reentrant": False, "preserve_rng_state": preserve_rng_state, "context_fn": _first_and_again}
    model.gradient_checkpointing_enable(how)
    if not input_gradients:
        model.disable_input_require_grads()  # transformers' hook: the embedding's result would stay, and its gradient
    chosen = spread(min(count, len(layers)), len(layers))
    kept = Offload(next(model.parameters()).device) if offload else None
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index in chosen
        if kept is not None:
            layer._gradient_checkpointing_func = kept.around(layer._gradient_checkpointing_func)
