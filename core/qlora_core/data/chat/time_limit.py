"""A limit on the time that somebody else's code may take in this thread: a template can loop for ever."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

GLANCE_SECONDS = 0.5


class TookTooLong(Exception):
    """Raised inside of what ran for too long."""


class _Watchdog:
    """Knows until when each thread may go on, and raises in one that does not end. No signal would do: rows are
    rendered in many threads, and on Windows."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._struck: set[int] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> int:
        """Watch this thread from now on; returns its number."""
        number = threading.get_ident()
        with self._lock:
            self._until[number] = time.monotonic() + seconds
            if self._thread is None or not self._thread.is_alive():  # as in a process that was forked
                self._thread = threading.Thread(target=self._watch, daemon=True, name="time-limit")
                self._thread.start()
        return number

    def end(self, number: int) -> bool:
        """Watch it no more; returns whether it was struck, which can then no more happen outside."""
        with self._lock:
            self._until.pop(number, None)
            struck = number in self._struck
            self._struck.discard(number)
            if struck:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(number), None)
        return struck

    def _watch(self) -> None:
        while True:
            time.sleep(GLANCE_SECONDS)
            with self._lock:
                if not self._until:
                    self._thread = None
                    return
                now = time.monotonic()
                for number, until in self._until.items():
                    if now > until:
                        self._struck.add(number)
                        ctypes.pythonapi.PyThreadState_SetAsyncExc(
                            ctypes.c_ulong(number), ctypes.py_object(TookTooLong)
                        )


_WATCHDOG = _Watchdog()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TookTooLong in what is done meanwhile, once it takes longer. Not to be nested in one thread."""
    number = _WATCHDOG.begin(seconds)
    struck = False
    try:
        yield
    finally:
        struck = _WATCHDOG.end(number)
    if struck:
        raise TookTooLong
