"""Telling that memory ran out, and giving back what lies unused."""

import gc

import torch

from qlora_profiles import machine_errors


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the card or beside it."""
    return isinstance(error, torch.OutOfMemoryError) or machine_errors.is_out_of_memory(error)


def free_cached_memory(device: torch.device) -> None:
    """Give the allocator's unused blocks back to the device, those first that a failed pass left in cycles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
