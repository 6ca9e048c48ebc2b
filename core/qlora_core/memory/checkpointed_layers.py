"""Which decoder layers keep their activations and which compute them again in backward."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor, nn

from qlora_core.execution.layer_choice import choose_layers
from qlora_core.memory.activation_checkpoint import InputStore, NotATensor, OnDevice, Pass, checkpoint, in_pass
from qlora_core.memory.activation_offload import Offload
from qlora_core.model.parts import family_of, text_decoder


def _pass_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), in_pass(Pass.RECOMPUTING)


def decoder_layers(model: nn.Module) -> list[Any]:
    """The text decoder's layers that can be checkpointed, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in text_decoder(model).modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_layers(
    model: Any,
    count: int,
    preserve_rng_state: bool,
    offload: bool = False,
    input_gradients: bool = False,
    lighter: bool = True,
) -> None:
    """Let ``count`` decoder layers, or all, recompute their activations, evenly spread over the depth.

    ``preserve_rng_state`` costs time and is needed only where a layer draws random numbers (dropout).
    ``offload`` keeps the layers' inputs in main memory meanwhile. ``input_gradients``: also for the embeddings' result,
    which checkpoints of this kind do not need. ``lighter``: with less for the host to do than torch's checkpoint, where
    that is known to take no more memory: without dropout, in layers that add their MLP at the end.
    """
    layers = decoder_layers(model)
    if count == 0:
        model.gradient_checkpointing_disable()
        return
    how = {"use_reentrant": False, "preserve_rng_state": preserve_rng_state, "context_fn": _pass_contexts}
    model.gradient_checkpointing_enable(how)
    if not input_gradients:
        model.disable_input_require_grads()  # transformers' hook: the embedding's result would stay, and its gradient
    chosen = choose_layers(min(count, len(layers)), len(layers))
    kept = Offload(next(model.parameters()).device) if offload else None
    own = lighter and not preserve_rng_state and family_of(model).only_adds_mlp
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index in chosen
        usual = layer._gradient_checkpointing_func
        usual = kept.around(usual) if kept is not None else usual
        layer._gradient_checkpointing_func = _lighter(layer, kept or OnDevice(), usual) if own else usual


def _lighter(layer: Any, keeper: InputStore, usual: Callable[..., Any]) -> Callable[..., Any]:
    """A checkpointing function of our own for a layer, or ``usual`` once the layer turns out not to be for it."""
    trained = tuple(parameter for parameter in layer.parameters() if parameter.requires_grad)

    def recomputing(run: "partial[Any]", *args: Any) -> Any:
        if len(args) != 1 or any(_differentiable(each) for each in run.keywords.values()):
            return usual(run, *args)
        try:
            return checkpoint(run, args[0], trained, keeper)
        except NotATensor:
            layer._gradient_checkpointing_func = usual
        return usual(run, *args)

    return recomputing


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
