"""The signals that ask a process to end: Ctrl-C, and the polite ones of service managers and batch systems."""

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
"""Batch systems warn with the user's signals and with SIGXCPU; Windows sends SIGBREAK when a console is closed."""
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
CTRL_C = (signal.SIGINT,)
APART_SECONDS = 0.1
"""Ctrl-C that comes again sooner is the same one: a wrapper passes on what the terminal had sent as well."""

Handler = Callable[[int, FrameType | None], Any]
WINDOWS_CTRL_C = 0xC000013A
"""How Windows says that Ctrl-C or the closing of a console ended a process."""


class Terminated(KeyboardInterrupt):
    """Somebody other than the terminal asked for the end."""


class StopRequests:
    """Counts how often the end was asked for.

    Only Ctrl-C asks again: who stops a service sends several polite signals, and kills what does not end.
    """

    def __init__(self) -> None:
        self.count = 0
        self._last_s = float("-inf")

    def on_signal(self, number: int, frame: FrameType | None = None) -> None:
        """A handler for all of them."""
        now = time.monotonic()
        again = number in CTRL_C and now - self._last_s >= APART_SECONDS
        self._last_s = now
        if again or not self.count:
            self.count += 1


def install(handler: Handler) -> dict[int, Any]:
    """Let ``handler`` answer them; returns the handlers before, by number.

    What ``nohup`` had ignored stays so. Python lets only the main thread decide; in another one nothing changes.
    """
    before: dict[int, Any] = {}
    with suppress(ValueError):
        for number in STOP_SIGNALS:
            if number in CTRL_C or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    return before


@contextmanager
def stop_requests() -> Iterator[StopRequests]:
    """They are counted meanwhile, instead of ending this process."""
    requests = StopRequests()
    before = install(requests.on_signal)
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """A process started meanwhile gets them only once it called :func:`let_through`, with its handlers in place."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Take those that wait since the process was started."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ended_by_one(code: int) -> bool:
    """Whether a process with this return code was ended by one of them."""
    return -code in STOP_SIGNALS or code == WINDOWS_CTRL_C


def ignore_from_here() -> None:
    """For a process that ends by itself: one whose parent was asked, too, or one that only has to clean up.

    Python gives its own handlers up before its last work is done, and the next signal would end it with another code.
    """
    with suppress(ValueError):
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler that ends what is being done. Raises KeyboardInterrupt for Ctrl-C, Terminated for another signal."""
    raise KeyboardInterrupt if number in CTRL_C else Terminated
