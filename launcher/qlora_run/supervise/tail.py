"""Following an event file that another process writes."""

from pathlib import Path

from qlora_profiles.events import Event, read_events


class Tail:
    """Hands out each complete event of a file once, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0

    def new_events(self) -> list[Event]:
        """The events since the last call. A damaged line, as a kill can leave it, is passed over."""
        if self.path.exists() and self.path.stat().st_size < self.offset:
            self.offset = 0  # another run began in the same folder
        events: list[Event] = []
        for event, behind in read_events(self.path, self.offset):
            events.append(event)
            self.offset = behind
        return events
