"""Processes that write to a store; a module of its own so that a spawned process can import it by name."""

import os
from pathlib import Path

from msgspec import Struct

from qlora_profiles.file_lock import file_lock
from qlora_profiles.machine_store import MachineStore


class Numbers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record that grows."""

    numbers: tuple[int, ...] = ()
    name: str = ""


def add_often(folder: str, first: int, times: int) -> None:
    """Add so many numbers to one record, each in an update of its own."""
    store = MachineStore("numbers", Numbers, Path(folder))
    for number in range(first, first + times):
        done = store.update("shared", lambda before, new=number: Numbers(numbers=(*_of(before), new)))  # type: ignore[misc]
        assert done is not None


def _of(before: Numbers | None) -> tuple[int, ...]:
    return before.numbers if before else ()


def hold_and_die(path: str) -> None:
    """End without letting go of a lock."""
    with file_lock(Path(path)):
        os._exit(9)
