"""An optimizer's step that finds no room for its state at first."""

from collections.abc import Callable
from functools import wraps
from itertools import count
from types import MethodType
from typing import Any

import torch

from qlora_core.step.oom import free_cached_memory, is_out_of_memory
from qlora_profiles.errors import EnvironmentProblem


def keep_trying(optimizer: torch.optim.AdamW, device: torch.device, make_room: Callable[[], bool]) -> None:
    """Let a step that runs out of memory try again: after unused blocks were given back, then while there is more
    to give. ``make_room`` gives up something that is held, and says whether there was anything.

    torch makes the state of all parameters before it changes any of them, so nothing is done twice; the state that
    it could not finish must go.
    """
    step = optimizer.step

    @wraps(step)
    def tried(_: Any, *args: Any, **kwargs: Any) -> Any:
        for number in count():
            try:
                return step(*args, **kwargs)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            for parameter in [p for p, state in optimizer.state.items() if "exp_avg_sq" not in state]:
                del optimizer.state[parameter]
            if number > 0 and not make_room():
                ways = "--optimizer adamw-8bit, or a smaller --lora-r"
                raise EnvironmentProblem("out of memory for the optimizer's state", ways)
            free_cached_memory(device)
        return None

    optimizer.step = MethodType(tried, optimizer)  # type: ignore[method-assign]  # schedulers look at its __func__
