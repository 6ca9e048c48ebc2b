"""Work that finds no room at first: it is done again after room was made."""

from collections.abc import Callable
from functools import wraps
from itertools import chain
from types import MethodType
from typing import Any, TypeVar

import torch

from qlora_core.memory.oom import free_cached_memory, is_out_of_memory
from qlora_profiles.errors import EnvironmentProblem, first_line

T = TypeVar("T")

SAMPLE_WAYS = "qlora-run chat, once the run is over"
OPTIMIZER_WAYS = "--optimizer adamw-8bit, or a smaller --lora-r"


def retry_on_oom(
    work: Callable[[], T],
    device: torch.device,
    free_memory: Callable[[], bool],
    problem: Callable[[str], EnvironmentProblem],
) -> T:
    """Do something, and again each time that memory ran out and ``free_memory`` gave something up.

    The error is gone before room is made: its traceback holds what the try had made so far. ``work`` must be such
    that a part of it may be done twice.

    Raises:
        EnvironmentProblem: what ``problem`` makes of the last error's words, once there is nothing left to give up.
    """
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            why = first_line(error).split(". ")[0][:100]
        if not free_memory():
            raise problem(why)
        free_cached_memory(device)


def retry_after_freeing(work: Callable[[], T], device: torch.device, free_memory: Callable[[], bool], ways: str) -> T:
    """Do something that must not fail for want of memory, again after unused blocks were given back, then while
    there is more to give. ``free_memory`` gives up something that is held, and says whether there was anything.

    Raises:
        EnvironmentProblem: memory ran out for good; ``ways`` are what helps.
    """
    rooms = chain([True], iter(free_memory, False))
    return retry_on_oom(work, device, lambda: next(rooms, False), beside_a_step(ways))


def beside_a_step(ways: str) -> Callable[[str], EnvironmentProblem]:
    """What to say where memory ran out for good in other work than a step; ``ways`` are what helps."""
    return lambda why: EnvironmentProblem(f"out of memory beside a step ({why})", ways)


def retry_optimizer_step(optimizer: torch.optim.AdamW, device: torch.device, free_memory: Callable[[], bool]) -> None:
    """Let a step that runs out of memory try again; it raises EnvironmentProblem once nothing is left to free.

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

        return retry_after_freeing(once, device, free_memory, OPTIMIZER_WAYS)

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
