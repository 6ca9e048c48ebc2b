"""Writes that survive a power loss: what was said to be on the disk is there, whole.

A system keeps what is written in memory for a while, and may put names on the disk before the bytes behind them.
``fsync`` waits for both: of a file for its bytes, of a folder for the names in it.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

NOT_DONE_HERE = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)
"""What some network and in-memory file systems answer: there is nothing to wait for."""


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk.

    Raises:
        OSError: they are not: it is full, or broken.
    """
    _sync(path, os.O_RDWR)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk; Windows knows no such thing. Raises as ``sync_file``."""
    if os.name != "nt":
        _sync(folder, os.O_RDONLY)


def sync_tree(folder: Path) -> None:
    """Wait for everything below a folder, and for its own name. Raises as ``sync_file``."""
    for path in sorted(folder.rglob("*"), reverse=True):  # the inner ones first
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            sync_file(path)
    sync_folder(folder)
    sync_folder(folder.parent)


def _sync(path: Path, mode: int) -> None:
    number = os.open(path, mode)
    try:
        wait_for(number)
    finally:
        os.close(number)


def wait_for(number: int) -> None:
    """Wait until what was written to an open file, by its number, is on the disk. Raises as ``sync_file``."""
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in NOT_DONE_HERE:
            raise


def write_whole(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one move that lasts; processes that write at once leave one of their versions.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        with part.open("x", encoding="utf-8", newline="\n") as file:  # a link of that name is not written through
            file.write(text)
            file.flush()
            wait_for(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
