"""Standard output and standard error that a command cannot die of: letters they lack, and pipes that end early."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

GONE = (errno.EPIPE, errno.EINVAL, errno.ESHUTDOWN)
"""What writing to a pipe without a reader raises; Windows says EINVAL."""


class LastingPipe:
    """A stream that is no terminal; when its reader leaves (``| head``), what follows goes nowhere.

    The work goes on, and so does its exit code: a training must not end because nobody reads its lines any more.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or count as written."""
        self._lasting(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, if anybody reads."""
        self._lasting(self._stream.flush)

    def _lasting(self, work: Any) -> None:
        try:
            work()
        except OSError as error:
            if error.errno not in GONE:
                raise
            self._leave()

    def _leave(self) -> None:
        """Let the descriptor lead nowhere: Python flushes it once more at its end."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Both streams in such a shape while a command runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout), _lasting(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: Any) -> Any:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return stream if stream.isatty() else LastingPipe(stream)
