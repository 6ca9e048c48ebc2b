"""Write the reference pages: ``python -m qlora_run.cli.docs [FOLDER]``; ``FOLDER`` is ``docs`` if not given."""

import sys
from collections.abc import Sequence
from pathlib import Path

from qlora_run.cli.markdown import compatibility_markdown, settings_markdown
from qlora_run.cli.recipe_page import recipes_markdown

PAGES = {
    "settings.md": settings_markdown,
    "compatibility.md": compatibility_markdown,
    "recipes.md": recipes_markdown,
}


def main(argv: Sequence[str]) -> None:
    """Write every page into the folder named, in UTF-8. Raises OSError where it cannot be written."""
    folder = Path(argv[0] if argv else "docs")
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PAGES.items():
        (folder / name).write_text(make(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
