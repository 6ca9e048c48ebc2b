"""Writing ``events.jsonl``: whole lines, flushed one by one, so that a kill loses at most the line in hand.

They are on the disk for good when :meth:`EventLog.sync` returns: at checkpoints and at the end.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from qlora_profiles import events as schema
from qlora_profiles import run_folder
from qlora_profiles.durable import sync_folder, wait_for
from qlora_profiles.errors import EnvironmentProblem

E = TypeVar("E", bound=schema.Event)


class EventLog:
    """The open event file of a run.

    ``step`` is the last optimizer step that counts; ``in_force`` tells the limits that run now, none before
    there is a model. Both are for the last word.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / run_folder.EVENTS
        _drop_broken_tail(self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        sync_folder(folder)
        self.in_force: Callable[[], dict[str, Any]] = dict
        self.step = 0

    def write(self, kind: type[E], **fields: Any) -> None:
        """Append an event of ``kind``, stamped with the time.

        Raises:
            EnvironmentProblem: the folder was removed meanwhile; what is written would be lost in silence.
        """
        event = kind(time_s=time.time(), **fields)
        self._check_there()
        self._file.write(schema.encode(event))
        self._file.flush()
        if isinstance(event, schema.StepEvent):
            self.step = event.step
        elif isinstance(event, schema.RunEvent):
            self.step = event.first_step - 1

    def _check_there(self) -> None:
        with suppress(FileNotFoundError):
            self.path.stat()
            return
        lost = f"; {self.step} trained steps are lost with it" if self.step else ""
        said = f"{self.path.parent}: the run's folder was removed while it ran{lost}"
        raise EnvironmentProblem(said, "start it again")

    def warn(self, message: str) -> None:
        """Append a warning."""
        self.write(schema.WarningEvent, message=message)

    def phase(self, name: str, done: int | None = None, total: int | None = None) -> None:
        """Say what is being done now."""
        self.write(schema.PhaseEvent, name=name, done=done, total=total)

    def done(self, **fields: Any) -> None:
        """Append the process's last word."""
        self.write(schema.DoneEvent, limits=self.in_force(), **fields)

    def sync(self) -> None:
        """Wait until what was written would survive a power loss. Raises OSError: the disk does not take it."""
        self._file.flush()
        wait_for(self._file.fileno())

    def close(self) -> None:
        """Close the file; a disk that does not take the last lines has been told of by what was written before."""
        with suppress(OSError):
            self.sync()
        self._file.close()


def _drop_broken_tail(path: Path) -> None:
    """A process killed in mid-line leaves half a line; the next one must not write on behind it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(data.rfind(b"\n") + 1)
