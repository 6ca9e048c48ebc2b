"""What a run needs before its first step, fetched while something else is still going on."""

import gc
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread

from qlora_core.model.bitsandbytes import import_bitsandbytes
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB, MIB

PIECE_BYTES = 8 * MIB
SPARE_BYTES = 2 * GIB
"""Memory that reading ahead leaves alone: files that push each other out again would be read twice."""


def import_meanwhile(plan: RunPlan) -> Thread | None:
    """Import what training needs while the rows are read and tokenised, which mostly happens outside of Python."""
    if plan.execution_values().backend != "peft":
        return None  # another backend may have to be there before transformers is

    def work() -> None:
        with suppress(Exception):  # it may be missing, where nothing is quantised
            import_bitsandbytes(plan.execution_values().device)
        with suppress(Exception):  # whoever needs it imports it again, and says what is wrong
            from qlora_core.train.trainer import StepTrainer  # noqa: F401

            for name in ("peft", "transformers.models.auto.modeling_auto"):
                import_module(name)

    return _started(work)


def collect_from_here() -> None:
    """Look for garbage again, but never in what is there by now.

    Modules stay, and looking through all of them takes long, each time that memory is to be freed.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def read_ahead(plan: RunPlan) -> Thread:
    """Bring the weights into the system's cache of files, while Python is still busy with its imports."""
    return _started(lambda: _read(plan))


def _started(work: Callable[[], None]) -> Thread:
    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


def _read(plan: RunPlan) -> None:
    import psutil

    from qlora_core.data.chat.tokenizer_source import tokenizer_on_disk

    with suppress(OSError, ValueError):  # loading will say what is wrong
        folder = tokenizer_on_disk(plan.recipe_values(), plan.run_values())
        files = sorted(folder.glob("*.safetensors")) if folder else []
        if sum(file.stat().st_size for file in files) + SPARE_BYTES <= psutil.virtual_memory().available:
            for file in files:
                read_uncached(file)


def read_uncached(path: Path) -> int:
    """Read those pieces of a file whose beginning is not in memory yet; how many bytes that were."""
    piece, read = memoryview(bytearray(PIECE_BYTES)), 0
    with path.open("rb", buffering=0) as file:
        for start in range(0, path.stat().st_size, PIECE_BYTES):
            if not _in_memory(file.fileno(), start):
                file.seek(start)
                read += file.readinto(piece) or 0
    return read


def _in_memory(handle: int, start: int) -> bool:
    """Whether a byte of a file can be had without waiting for a disk; where nobody can tell, it cannot."""
    no_wait = getattr(os, "RWF_NOWAIT", None)
    if no_wait is None:
        return False
    try:
        return os.preadv(handle, [bytearray(1)], start, no_wait) == 1
    except OSError:  # it would have to wait, or the file system does not know
        return False
