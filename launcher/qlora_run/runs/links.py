"""Links in a run's folder: nothing is written through one that leads out of it."""

from collections.abc import Iterator
from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.run_folder import is_ours
from qlora_run.report.formatting import shown_path


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which something that a run writes is a link to elsewhere: a received one may hold such.

    Raises:
        UserError: names the link and where it leads.
    """
    inside = folder.resolve()
    for path in _written(folder):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            said = f"{shown_path(path)}: a link to {path.resolve()}, outside of the run's folder; not written through"
            raise UserError(said, "delete the link   or   --output ANOTHER-FOLDER")


def _written(folder: Path) -> Iterator[Path]:
    """What runs write in ``folder``, and all that lies in it; what a link leads to is not looked into."""
    for path in folder.iterdir():
        if is_ours(path.name) or path.name.endswith(".part"):
            yield path
            if path.is_dir() and not path.is_symlink():
                yield from path.rglob("*")
