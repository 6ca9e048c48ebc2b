"""Which decoder layers keep their activations and which compute them again in backward."""

from typing import Any

from torch import nn

from qlora_core.step.spread import spread


def decoder_layers(model: nn.Module) -> list[Any]:
    """The layers that can be checkpointed, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def recompute_layers(model: Any, count: int, preserve_rng_state: bool, offload: bool = False) -> None:
    """Let ``count`` decoder layers recompute their activations, evenly spread over the depth.

    ``preserve_rng_state`` costs time and is needed only where a layer draws random numbers (dropout).
    ``offload`` keeps the layers' inputs in main memory meanwhile.
    """
    layers = decoder_layers(model)
    if count == 0:
        model.gradient_checkpointing_disable()
        return
    how = {"use_reentrant": False, "preserve_rng_state": preserve_rng_state}
    model.gradient_checkpointing_enable(how, offload=offload)
    chosen = spread(min(count, len(layers)), len(layers))
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index in chosen
