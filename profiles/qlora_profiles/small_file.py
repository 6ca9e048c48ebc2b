"""Files that people write by hand: read with limits, so that nothing hangs, nests for ever or fills the memory."""

from collections.abc import Iterator
from pathlib import Path
from stat import S_ISFIFO, S_ISREG
from typing import Any

from qlora_profiles.errors import UserError

MOST_BYTES = 2**20
MOST_LEVELS = 20
SHELL_PIPES = ("/dev/fd/", "/proc/")
"""Where a shell's ``<(command)`` lies: a pipe that somebody writes to."""


def read_small(path: Path, name: str) -> bytes:
    """The bytes of a file that a person wrote; ``name`` is what it is called in errors.

    Raises:
        UserError: it is no file, or far too large.
        OSError: it cannot be read.
    """
    mode = path.stat().st_mode
    if not S_ISREG(mode) and not path.is_dir() and not (S_ISFIFO(mode) and str(path).startswith(SHELL_PIPES)):
        raise UserError(f"{name}: no file but a pipe or a device", "a file")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{name}: over {MOST_BYTES:,} bytes, which nobody writes by hand", "the right file")
    return data


def check_levels(text: str, name: str) -> None:
    """Nothing for broken YAML: who reads it says more.

    Raises:
        UserError: it nests deeply, or names a key twice in one mapping.
    """
    import yaml

    try:
        for level, line in _levels(yaml.parse(text, Loader=yaml.SafeLoader), name):
            if level > MOST_LEVELS:
                said = f"{name}:{line}    nested over {MOST_LEVELS} levels deep"
                raise UserError(said, "names with values, like  epochs: 3")
    except (yaml.YAMLError, ValueError):
        return


def _levels(events: Any, name: str) -> Iterator[tuple[int, int]]:
    """(how deep, line) of each node of a file's events."""
    import yaml

    open_nodes: list[_Open] = []
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
        elif isinstance(event, yaml.NodeEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if open_nodes:
                open_nodes[-1].take(event, line, name)
            if isinstance(event, yaml.CollectionStartEvent):
                open_nodes.append(_Open(isinstance(event, yaml.MappingStartEvent)))
            yield len(open_nodes), line


class _Open:
    """A mapping or list that is being read: its keys so far."""

    def __init__(self, mapping: bool) -> None:
        self.mapping, self.count, self.keys = mapping, 0, dict[str, int]()

    def take(self, event: Any, line: int, name: str) -> None:
        """One more node in it. Raises UserError: a key for the second time."""
        is_key = self.mapping and self.count % 2 == 0
        self.count += 1
        key = getattr(event, "value", None)
        if is_key and key is not None and self.keys.setdefault(key, line) != line:
            raise UserError(f"{name}:{line}    {key} is already set in line {self.keys[key]}", "remove one of them")
