"""One process at a time: a lock on a file that the system lets go of when its holder dies, however it dies."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

State = Literal["held", "taken", "no locks"]

PATIENCE_SECONDS = 10.0
GLANCE_SECONDS = 0.005
HOW = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
"""The name is written into the file: never into one that a link leads to."""
LOCKED_BYTE = 2**30
"""Far behind what stands in the file: on Windows nobody else may read a byte that is locked."""
_TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""What the systems say of a lock that another one holds."""


@contextmanager
def file_lock(path: Path, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[bool]:
    """Hold ``path`` against other processes and threads; the file is made and stays.

    Says whether it is held: after so much patience, and where a file system has no locks, work goes on without.

    Raises:
        OSError: the file cannot be made.
    """
    with path.open("ab") as file:
        held = _state_of(file.fileno(), time.monotonic() + patience_seconds) == "held"
        try:
            yield held
        finally:
            if held:
                with suppress(OSError):
                    _unlock(file.fileno())


class Taken(Exception):
    """Another process holds the file; ``pid`` as it says itself, ``None`` where it says nothing."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(pid)
        self.pid = pid


@contextmanager
def claimed(path: Path, patience_seconds: float = 0.0) -> Iterator[bool]:
    """Hold ``path`` with this process's name in it, and delete it behind.

    Says whether the system holds it: where a file system has no locks, the name alone must do.

    Raises:
        Taken: another one holds it for longer than the patience.
        OSError: the file cannot be made.
    """
    file, state = _opened(path, time.monotonic() + patience_seconds)
    with file:
        if state == "taken" or (state == "no locks" and _named_in(file) not in (None, os.getpid())):
            raise Taken(_named_in(file))
        _write_name(file)
        try:
            yield state == "held"
        finally:
            with suppress(OSError):  # Windows deletes no open file: it stays, and holds nothing
                path.unlink()
            with suppress(OSError):
                _unlock(file.fileno())


def _opened(path: Path, until: float) -> tuple[BinaryIO, State]:
    """The file, locked or not; one that its last holder deleted meanwhile is opened once more."""
    while True:
        descriptor = os.open(path, HOW, 0o666)
        file = os.fdopen(descriptor, "r+b", buffering=0)
        state = _state_of(descriptor, until)
        with suppress(OSError):
            if state == "taken" or os.path.samestat(os.fstat(descriptor), path.stat()):
                return file, state
        file.close()


def _write_name(file: BinaryIO) -> None:
    import psutil

    file.seek(0)
    file.truncate()
    file.write(f"{os.getpid()} {psutil.Process().create_time()}".encode())


def _named_in(file: BinaryIO) -> int | None:
    """The process that a file names; ``None`` where it is gone, as after a kill."""
    import psutil

    with suppress(OSError, ValueError, psutil.Error):
        file.seek(0)
        number, began = file.read(100).split()
        if abs(psutil.Process(int(number)).create_time() - float(began)) < 1:
            return int(number)
    return None


def _state_of(descriptor: int, until: float) -> State:
    while True:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno not in _TAKEN:
                return "no locks"
            if time.monotonic() >= until:
                return "taken"
            time.sleep(GLANCE_SECONDS)
        else:
            return "held"


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
