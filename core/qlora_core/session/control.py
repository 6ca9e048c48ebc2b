"""What others ask of a run: the launcher over standard input, or a signal to this very process.

The launcher says ``stop``, or ``go {...}`` in answer to a measurement; the end of its words means that it died.
"""

import os
import queue
import sys
import threading
from types import FrameType

from qlora_core.session.stop_signals import StopRequests, install, let_through
from qlora_profiles.errors import Interrupted

GO = "go"
NOTHING_SAVED = "stopped before the first step; nothing to save"


class Control:
    """True once somebody wants the run to end after the step in hand; holds the launcher's answers meanwhile."""

    def __init__(self) -> None:
        self._asked = False
        self._requests = StopRequests()
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # a signal may come while it is read
        self._supervised = False

    def __bool__(self) -> bool:
        return self._asked

    def set(self) -> None:
        """Ask for the stop."""
        self._asked = True
        self._answers.put(None)

    def stop_here(self) -> None:
        """Where no step was taken yet. Raises Interrupted if the stop was asked for."""
        if self:
            raise Interrupted(NOTHING_SAVED)

    def listen(self, supervised: bool) -> None:
        """Start listening: to signals, and when supervised to the launcher's lines and their end."""
        self._supervised = supervised
        if supervised:
            threading.Thread(target=self._read, daemon=True, name="stop-listener").start()
        install(self._on_signal)
        let_through()

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
        """A group's signal comes to the launcher, too: whether to end at once is then decided there."""
        self._requests.on_signal(number, frame)
        if self._requests.count > 1 and not self._supervised:
            raise KeyboardInterrupt
        self.set()
