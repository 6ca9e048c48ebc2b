"""The device of a run: its memory cap, and what the run really takes."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from qlora_core.session.ranks import SINGLE
from qlora_profiles.plan import RunPlan
from qlora_profiles.settings import Execution

MOST_OUTSIDE_BYTES = 2**30
"""More beside the allocator is somebody else's: the free memory it is compared with is from an earlier moment. Set by
hand."""


@dataclass(slots=True, kw_only=True)
class DeviceMemory:
    """What the process holds on the card.

    ``outside_allocator_bytes`` is what it takes beside torch's allocator (context, kernels, libraries),
    ``allowed_bytes`` what the allocator may take of the ``budget_bytes`` of the whole process. ``free_before_bytes``
    was free on the card before the process took anything.
    """

    device: torch.device
    outside_allocator_bytes: int = 0
    allowed_bytes: int | None = None
    budget_bytes: int | None = None
    free_before_bytes: int | None = None
    retries_seen: int = 0
    kept_back_bytes: int = 0

    def peak_bytes(self) -> int | None:
        """Most device memory held so far, as the driver sees it; ``None`` on CPU."""
        if self.device.type != "cuda":
            return None
        return torch.cuda.max_memory_reserved(self.device) + self.outside_allocator_bytes

    def reserved_peak_bytes(self) -> int | None:
        """Most that torch's allocator held since ``forget_peak``; ``None`` on CPU."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else None

    def forget_peak(self) -> None:
        """Count the peak from here on."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def outside_now_bytes(self) -> int:
        """What the process holds beside torch's allocator by now: libraries load themselves when first used.

        Known only where nobody else came or went on the card meanwhile; else what it was at the start.
        """
        if self.device.type != "cuda" or self.free_before_bytes is None:
            return self.outside_allocator_bytes
        free, _ = torch.cuda.mem_get_info(self.device)
        outside = self.free_before_bytes - free - torch.cuda.memory_reserved(self.device)
        return (
            outside if self.outside_allocator_bytes <= outside <= MOST_OUTSIDE_BYTES else self.outside_allocator_bytes
        )

    def cap_again(self, outside_bytes: int) -> None:
        """Keep the whole process inside its budget, now that more is known of what lies outside the allocator."""
        self.outside_allocator_bytes = outside_bytes
        self.cap()

    def cap(self) -> None:
        """Limit the allocator to what the budget leaves it."""
        if self.device.type != "cuda" or self.budget_bytes is None:
            return
        total = torch.cuda.get_device_properties(self.device).total_memory
        self.allowed_bytes = min(total, max(0, self.budget_bytes - self.outside_allocator_bytes - self.kept_back_bytes))
        torch.cuda.set_per_process_memory_fraction(self.allowed_bytes / total, self.device)

    @contextmanager
    def kept_back(self, size_bytes: int) -> Iterator[None]:
        """Allow the allocator so much less meanwhile."""
        self.kept_back_bytes = size_bytes
        self.cap()
        try:
            yield
        finally:
            self.kept_back_bytes = 0
            self.cap()

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

    Raises:
        RuntimeError: the device cannot be used, or has no memory left for its context.
    """
    execution = plan.execution_values()
    _limit_threads(execution)
    device = _device(execution.device)
    if device.type != "cuda":
        return DeviceMemory(device=device)
    before = _free_before_bytes(plan)
    torch.zeros(1, device=device)
    free, _ = torch.cuda.mem_get_info(device)
    outside = max(0, (before or free) - free - torch.cuda.memory_reserved(device))
    memory = DeviceMemory(
        device=device,
        outside_allocator_bytes=min(outside, MOST_OUTSIDE_BYTES),
        budget_bytes=execution.vram_budget_bytes,
        free_before_bytes=before,
    )
    memory.cap()
    return memory


def _device(kind: str) -> torch.device:
    return torch.device(kind, SINGLE.local_rank) if kind == "cuda" else torch.device(kind)


def _free_before_bytes(plan: RunPlan) -> int | None:
    """Free memory of the card by its driver, now; the report's where the driver cannot be asked."""
    gpu = next(iter(plan.cards()), None)
    if gpu is None:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)).free)
    except Exception:  # no driver library, a MIG slice, no identity: none of it stops a run
        return gpu.vram_free_bytes


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
    """Let go of a trainer's model so that the next one has the memory; nothing can be computed with it any more.

    What still names the model (the job, hooks, graphs) keeps it as an object: its weights are taken out of it.
    """
    for tensor in _held(trainer.job.loaded.model):
        tensor.data = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        if getattr(tensor, "quant_state", None) is not None:
            tensor.quant_state = None
    trainer.model = trainer.model_wrapped = trainer.optimizer = None
    trainer.accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _held(model: Any) -> Iterator[Any]:
    """A model's weights and buffers, and what 8-bit layers keep of theirs elsewhere."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        state = getattr(module, "state", None)
        yield from (kept for name in ("CB", "SCB") if torch.is_tensor(kept := getattr(state, name, None)))


def autocast(execution: Execution) -> AbstractContextManager[Any]:
    """Arithmetic in the plan's compute dtype; nothing where that is float32."""
    if execution.compute_dtype == "float32":
        return nullcontext()
    return torch.autocast(execution.device, getattr(torch, execution.compute_dtype))
