"""The store of what was measured or tried on machines: small JSON files in the user's cache folder, by kind.

All of it can be made again, so nothing about it may stop anybody: a file that cannot be read counts as none, with a
note, and a place that cannot be written keeps nothing. Files are replaced whole, and changed by one process at a time.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG
from typing import Generic, NamedTuple, TypeVar

from qlora_profiles import codec
from qlora_profiles.errors import UserError
from qlora_profiles.file_lock import file_lock
from qlora_profiles.places import cache_folder

T = TypeVar("T")

MOST_FILE_BYTES = 2**20
MOST_FILES = 200
"""Of one kind; the ones written longest ago go first. Both are set by hand."""
LOCK_NAME = ".lock"
TRIES, PAUSE_SECONDS = 5, 0.02
"""On Windows a file that somebody reads at that moment cannot be replaced."""
LEFT_BEHIND_SECONDS = 3600.0
"""So old is an unfinished file that whoever wrote it is dead."""


class Found(NamedTuple, Generic[T]):
    """What a file holds; ``value`` is ``None`` where there is none, and ``note`` says what is wrong with it."""

    value: T | None = None
    note: str | None = None


class MachineStore(Generic[T]):
    """Records of one kind, each in a file by its name. ``folder`` stands in for the kind's own."""

    def __init__(self, name: str, kind: type[T], folder: Path | None = None) -> None:
        self.folder = folder or cache_folder("machine") / name
        self._kind = kind

    def path(self, name: str) -> Path:
        """The file of a record."""
        return self.folder / f"{name}.json"

    def read(self, name: str) -> Found[T]:
        """One record."""
        return self._found(self.path(name))

    def read_all(self, beginning: str) -> list[Found[T]]:
        """Every record whose name begins so, in the order of names."""
        try:
            paths = sorted(self.folder.glob(f"{beginning}*.json"))
        except OSError:
            return []
        return [self._found(path) for path in paths]

    def _found(self, path: Path) -> Found[T]:
        try:
            state = path.stat()
            if not S_ISREG(state.st_mode) or state.st_size > MOST_FILE_BYTES:
                return Found(note=f"{path}: not one of our files")
            return Found(codec.load(path, self._kind))
        except FileNotFoundError:
            return Found()
        except (OSError, RecursionError) as error:
            return Found(note=f"{path}: {error}")
        except UserError as error:
            return Found(note=error.message)

    def write(self, name: str, value: T) -> Path | None:
        """Put a record in its place, whatever lay there; its file, or ``None`` where that cannot be written."""
        return self.update(name, lambda before: value)

    def update(self, name: str, change: Callable[[T | None], T]) -> Path | None:
        """Put ``change`` of a record in its place, no other process in between; its file, or ``None`` as in ``write``.

        ``change`` gets ``None`` where there is no record that can be read. What it raises goes on, but for ``OSError``.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / LOCK_NAME):
                return self._replaced(self.path(name), change(self.read(name).value))
        except OSError:
            return None

    def _replaced(self, path: Path, value: T) -> Path:
        for left in reversed(range(TRIES)):
            try:
                codec.save(value, path)
                break
            except PermissionError:
                if not left:
                    raise
                time.sleep(PAUSE_SECONDS)
        self._forget(path)
        return path

    def _forget(self, newest: Path) -> None:
        """Remove the oldest files where there are too many, and what a killed process left unfinished."""
        with suppress(OSError):
            for path in self.folder.glob("*.part"):
                if time.time() - path.stat().st_mtime > LEFT_BEHIND_SECONDS:
                    path.unlink(missing_ok=True)
            others = [path for path in self.folder.glob("*.json") if path != newest]
            if len(others) >= MOST_FILES:
                others.sort(key=lambda path: path.stat().st_mtime)
                for path in others[: len(others) + 1 - MOST_FILES]:
                    path.unlink(missing_ok=True)
