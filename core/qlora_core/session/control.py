"""What others ask of a run: the launcher over standard input, or Ctrl-C when run by hand.

The launcher says ``stop``, or ``go {...}`` in answer to a measurement; the end of its words means that it died.
"""

import os
import queue
import signal
import sys
import threading
from types import FrameType

GO = "go"


class Control:
    """True once somebody wants the run to end after the step in hand; holds the launcher's answers meanwhile."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._supervised = False

    def __bool__(self) -> bool:
        return self._event.is_set()

    def set(self) -> None:
        """Ask for the stop."""
        self._event.set()
        self._answers.put(None)

    def listen(self, supervised: bool) -> None:
        """Start listening: to the launcher's lines and their end when supervised, else to SIGINT."""
        self._supervised = supervised
        if supervised:
            threading.Thread(target=self._read, daemon=True, name="stop-listener").start()
        else:
            signal.signal(signal.SIGINT, self._on_signal)

    def answer(self, patience_seconds: float) -> str | None:
        """What the launcher answers to a measurement: JSON, or ``None`` when nobody does or the run is to stop."""
        if not self._supervised or self:
            return None
        try:
            return self._answers.get(timeout=patience_seconds)
        except queue.Empty:
            return None

    def _read(self) -> None:
        """Unbuffered: Python's own reader would be locked when the process ends."""
        held = b""
        while chunk := os.read(sys.stdin.fileno(), 4096):
            *lines, held = (held + chunk).split(b"\n")
            for line in lines:
                self._obey(line.decode("utf-8").strip())
        self.set()

    def _obey(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == GO:
            self._answers.put(rest)
        elif line:
            self.set()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self:
            raise KeyboardInterrupt
        self.set()
