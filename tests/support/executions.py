"""A running execution around a model that a test made itself, without a plan and a trainer."""

from collections.abc import Callable
from typing import Any

import torch

from qlora_core.execution.limits import Limits
from qlora_core.execution.rungs import NAMES
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.model.packing import Packed
from qlora_core.train.execution import RunningExecution
from qlora_profiles.events import AdaptationEvent


def running(
    model: Any,
    limits: Limits,
    loss_sum: Callable[[Packed], torch.Tensor],
    told: list[AdaptationEvent] | None = None,
    memory: DeviceMemory | None = None,
) -> RunningExecution:
    """Computes ``model`` on a CPU, or where ``memory`` is; ``told`` gets what it writes down."""

    def apply(limits: Limits) -> Any:
        recompute_layers(model.get_base_model(), limits.layers_recomputed, False)
        return loss_sum

    def write(kind: type[AdaptationEvent], **fields: Any) -> None:
        if told is not None:
            told.append(kind(time_s=0.0, **fields))

    return RunningExecution(
        limits=limits,
        apply=apply,
        num_layers=len(decoder_layers(model)),
        usable=NAMES - {"rematerialize_activations"},  # these are PEFT's own layers
        backward=lambda loss: loss.backward(),
        drop_gradients=lambda: model.zero_grad(set_to_none=True),
        memory=memory or DeviceMemory(device=torch.device("cpu")),
        write=write,
        step_in_hand=lambda: 1,
        pin_memory=memory is not None,
    )
