"""Standard output and standard error that a command cannot die of: letters they lack, and places that take no more."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from qlora_profiles.errors import EXIT_ENVIRONMENT, EXIT_OK

GONE = (errno.EPIPE, errno.EINVAL, errno.ESHUTDOWN, errno.EIO)
"""What writing to a pipe without a reader raises (Windows says EINVAL), or to a terminal that was closed."""


class LastingPipe:
    """A stream that is no terminal; when its reader leaves (``| head``), what follows goes nowhere.

    The work goes on, and so does its exit code: a training must not end because nobody reads its lines any more.
    ``problem`` says what the system said where somebody does miss them: a full disk, a file that may not grow.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.problem = ""

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
                self.problem = error.strerror or str(error)
            lead_nowhere(self._stream)


def lead_nowhere(stream: Any) -> None:
    """Let the descriptor of a stream lead nowhere: Python flushes it once more at its end."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Streams:
    """How both streams fared."""

    def __init__(self) -> None:
        self.problem = ""

    def code_after(self, code: int, output_matters: bool) -> int:
        """The exit code of a command that ended with ``code``: not a good one where its output was lost."""
        if not self.problem:
            return code
        print(f"standard output could not be written: {self.problem}  -> another place for it", file=sys.stderr)
        return EXIT_ENVIRONMENT if code == EXIT_OK and output_matters else code


@contextmanager
def lasting_streams() -> Iterator[Streams]:
    """Both streams in such a shape while a command runs; a closed one is opened on nothing."""
    before = sys.stdout, sys.stderr
    told = Streams()
    if sys.stdin is None:
        sys.stdin = _open(None, 0)
    sys.stdout, sys.stderr = _lasting(_open(sys.stdout, 1)), _lasting(_open(sys.stderr, 2))
    try:
        yield told
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # a terminal that was closed
                lead_nowhere(stream)
        told.problem = getattr(sys.stdout, "problem", "")
        sys.stdout, sys.stderr = before


def _open(stream: Any, descriptor: int) -> Any:
    """The stream; the descriptor of one that was closed (``>&-``) leads nowhere, and no file of ours gets it."""
    if stream is not None:
        return stream
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        if nowhere != descriptor:
            os.dup2(nowhere, descriptor)
            os.close(nowhere)
    return open(descriptor, "w" if descriptor else "r", encoding="utf-8", closefd=False)


def _lasting(stream: Any) -> Any:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return stream if stream.isatty() else LastingPipe(stream)
