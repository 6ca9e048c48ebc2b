"""Processes that training starts: data loader workers, and one rank for each card."""

import os
import sys
import tempfile
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from qlora_core.selftest.arithmetic import accelerator
from qlora_core.selftest.registry import Found, Unavailable

WAIT_SECONDS = 30


class Numbers(Dataset[Any]):
    """A few numbers; of this module, so that a spawned process finds it by name."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return torch.tensor([index, os.getpid()])


def loader_worker() -> Found:
    """One data loader worker, started as training would start it."""
    loader = DataLoader(Numbers(), batch_size=4, num_workers=1, timeout=WAIT_SECONDS)
    (batch,) = loader
    if batch[:, 0].tolist() != [0, 1, 2, 3]:
        raise ArithmeticError(f"a worker sent {batch[:, 0].tolist()}")
    if int(batch[0, 1]) == os.getpid():
        raise RuntimeError("the worker did not run in a process of its own")
    return {"start": torch.multiprocessing.get_start_method()}


def all_reduce() -> Found:
    """A sum over one process for each card: NCCL, or gloo on Windows, which is all that it has there."""
    cards = torch.cuda.device_count() if accelerator() == "cuda" else 0
    if cards < 2:
        raise Unavailable("there is one card at most")
    backend = "gloo" if sys.platform == "win32" else "nccl"
    reduce_over(cards, backend)
    return {"backend": backend, "ranks": cards}


def reduce_over(ranks: int, backend: str) -> None:
    """Start ``ranks`` processes that add up their numbers and check the sum. Raises where one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        spawn: Any = import_module("torch.multiprocessing").spawn
        spawn(_rank, (ranks, backend, meeting), nprocs=ranks)


def _rank(rank: int, ranks: int, backend: str, meeting: str) -> None:
    import torch.distributed as dist

    limit = timedelta(seconds=WAIT_SECONDS)
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=ranks, timeout=limit)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    number = torch.full((4,), float(rank + 1), device=device)
    dist.all_reduce(number)
    if number.tolist() != [ranks * (ranks + 1) / 2] * 4:
        raise ArithmeticError(f"rank {rank} got {number.tolist()}")
    dist.destroy_process_group()
