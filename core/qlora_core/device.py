"""The device of a run: its memory cap, and what the run really takes."""

import gc
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution


@dataclass(slots=True, kw_only=True)
class DeviceMemory:
    """What the process holds on the card.

    ``outside_allocator_bytes`` is what it takes beside torch's allocator (context, kernels, libraries),
    ``allowed_bytes`` what the allocator may take.
    """

    device: torch.device
    outside_allocator_bytes: int = 0
    allowed_bytes: int | None = None
    retries_seen: int = 0

    def peak_bytes(self) -> int | None:
        """Most device memory held so far, as the driver sees it; ``None`` on CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_reserved(self.device) + self.outside_allocator_bytes

    def pressure(self) -> tuple[int, float]:
        """(allocation retries since the last call, reserved memory over what is allowed)."""
        if self.device.type != "cuda" or self.allowed_bytes is None:
            return 0, 0.0
        stats = torch.cuda.memory_stats(self.device)
        new = int(stats.get("num_alloc_retries", 0)) - self.retries_seen
        self.retries_seen += new
        return new, torch.cuda.memory_reserved(self.device) / self.allowed_bytes


def prepare(plan: RunPlan) -> DeviceMemory:
    """Start the device and cap the allocator so that the whole process stays inside the budget.

    The cap turns a silent spill into main memory (Windows, WSL) into an error that the step can handle.
    """
    execution = plan.execution_values()
    _limit_threads(execution)
    device = torch.device(execution.device, 0) if execution.device == "cuda" else torch.device(execution.device)
    if device.type != "cuda":
        return DeviceMemory(device=device)
    before = plan.report.gpus[0].vram_free_bytes if plan.report.gpus else None
    torch.zeros(1, device=device)
    free, total = torch.cuda.mem_get_info(device)
    outside = max(0, (before or free) - free - torch.cuda.memory_reserved(device))
    outside = min(outside, 2**30)  # more is somebody else's: the report's free memory is from an earlier moment
    if execution.vram_budget_bytes is None:
        return DeviceMemory(device=device, outside_allocator_bytes=outside)
    allowed = min(total, max(0, execution.vram_budget_bytes - outside))
    torch.cuda.set_per_process_memory_fraction(allowed / total, device)
    return DeviceMemory(device=device, outside_allocator_bytes=outside, allowed_bytes=allowed)


def _limit_threads(execution: Execution) -> None:
    if execution.cpu_threads is not None:
        torch.set_num_threads(execution.cpu_threads)
    elif execution.device == "cpu":
        torch.set_num_threads(_own_cores())


def _own_cores() -> int:
    """Cores that this process may use; a container often sees more."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def release(trainer: Any) -> None:
    """Let go of a trainer's model so that the next one has the memory."""
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    trainer.accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def autocast(execution: Execution) -> AbstractContextManager[Any]:
    """Arithmetic in the plan's compute dtype; nothing where that is float32."""
    if execution.compute_dtype == "float32":
        return nullcontext()
    return torch.autocast(execution.device, getattr(torch, execution.compute_dtype))
