"""Being asked to stop: by the launcher over standard input, or by Ctrl-C when run by hand."""

import os
import signal
import sys
import threading
from types import FrameType


class StopRequest:
    """Set once somebody wants the run to end after the step in hand."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Ask for the stop."""
        self._event.set()

    def listen(self, supervised: bool) -> None:
        """Start listening: a line, or the end of standard input (the launcher died), when supervised; else SIGINT."""
        if supervised:
            threading.Thread(target=self._read, daemon=True, name="stop-listener").start()
        else:
            signal.signal(signal.SIGINT, self._on_signal)

    def _read(self) -> None:
        os.read(sys.stdin.fileno(), 64)  # unbuffered: Python's own reader would be locked when the process ends
        self.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self:
            raise KeyboardInterrupt
        self.set()
