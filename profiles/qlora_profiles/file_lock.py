"""One process at a time: a lock on a file that the system lets go of when its holder dies, however it dies."""

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PATIENCE_SECONDS = 10.0
GLANCE_SECONDS = 0.005
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
        held = _taken(file.fileno(), time.monotonic() + patience_seconds)
        try:
            yield held
        finally:
            if held:
                with suppress(OSError):
                    _unlock(file.fileno())


def _taken(descriptor: int, until: float) -> bool:
    while True:
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno not in _TAKEN or time.monotonic() >= until:
                return False
            time.sleep(GLANCE_SECONDS)
        else:
            return True


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
