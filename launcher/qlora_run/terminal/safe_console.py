"""The console that all screens are printed on: what data, paths or models say never steers the terminal."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from qlora_profiles.visible import visible


class SafeConsole(Console):
    """Spells control characters in all that is shown; only rich's own styles and cursor moves reach the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of ``renderable``, safe to print."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
