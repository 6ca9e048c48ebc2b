"""Work beside a step's forward and backward that finds no room at first: it is done again after room was made."""

from collections.abc import Callable
from functools import wraps
from itertools import count
from types import MethodType
from typing import Any, TypeVar

import torch

from qlora_core.step.oom import free_cached_memory, is_out_of_memory
from qlora_profiles.errors import EnvironmentProblem, first_line

T = TypeVar("T")

SAMPLE_WAYS = "qlora-run chat, once the run is over"
OPTIMIZER_WAYS = "--optimizer adamw-8bit, or a smaller --lora-r"


def patiently(work: Callable[[], T], device: torch.device, make_room: Callable[[], bool], ways: str) -> T:
    """Do something that must not fail for want of memory, again after unused blocks were given back, then while
    there is more to give. ``make_room`` gives up something that is held, and says whether there was anything.

    ``work`` must be such that a part of it may be done twice.

    Raises:
        EnvironmentProblem: memory ran out for good; ``ways`` are what helps.
    """
    for number in count():
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = first_line(error).split(". ")[0][:100]
        if number > 0 and not make_room():
            break
        free_cached_memory(device)
    raise EnvironmentProblem(f"out of memory beside a step ({why})", ways)


def keep_trying(optimizer: torch.optim.AdamW, device: torch.device, make_room: Callable[[], bool]) -> None:
    """Let a step that runs out of memory try again.

    torch makes the state of all parameters before it changes any of them, so nothing is done twice; the state that
    it could not finish must go.
    """
    step = optimizer.step

    @wraps(step)
    def tried(_: Any, *args: Any, **kwargs: Any) -> Any:
        def once() -> Any:
            for parameter in [p for p, state in optimizer.state.items() if "exp_avg_sq" not in state]:
                del optimizer.state[parameter]
            return step(*args, **kwargs)

        return patiently(once, device, make_room, OPTIMIZER_WAYS)

    optimizer.step = MethodType(tried, optimizer)  # type: ignore[method-assign]  # schedulers look at its __func__


def drop_workspaces() -> bool:
    """Free what cuBLAS keeps inside torch's allocator until its next product; False where there was nothing.

    Never while there are CUDA graphs: they were captured with it.
    """
    if not torch.cuda.is_available():
        return False
    before = torch.cuda.memory_allocated()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated() < before
