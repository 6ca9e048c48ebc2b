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

E = TypeVar("E", bound=schema.Event)


class EventLog:
    """The open event file of a run.

    ``in_force`` tells the limits that run now, for the last word; none before there is a model.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / run_folder.EVENTS
        _drop_broken_tail(self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="\n")
        sync_folder(folder)
        self.in_force: Callable[[], dict[str, Any]] = dict

    def write(self, kind: type[E], **fields: Any) -> None:
        """Append an event of ``kind``, stamped with the time."""
        self._file.write(schema.encode(kind(time_s=time.time(), **fields)))
        self._file.flush()

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
