"""The view for programs: every event as it comes, one JSON object a line."""

import sys

from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import Event, encode
from qlora_profiles.visible import visible, visible_json
from qlora_run.report.run_state import RunState
from qlora_run.terminal.console import print_error


class JsonView:
    """Passes the events on to standard output; the launcher's own words go to standard error."""

    def begin(self, state: RunState) -> None:
        """Nothing: the run's own event follows."""

    def event(self, event: Event, state: RunState) -> None:
        """Pass it on."""
        sys.stdout.write(visible_json(encode(event)))
        sys.stdout.flush()

    def tick(self, state: RunState) -> None:
        """Nothing to draw."""

    def say(self, text: str) -> None:
        """A line for a person."""
        print(visible(text), file=sys.stderr)

    def end(self, state: RunState, problem: QloraRunError | None) -> None:
        """The last event has said it; a death without one has not."""
        if problem is not None:
            print_error(problem)
