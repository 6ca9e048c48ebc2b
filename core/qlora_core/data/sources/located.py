"""From an entry of ``--data`` to the files that hold its rows: a file, a folder, a pattern, a saved set, a hub set."""

import glob
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from qlora_core.data.sources.data_file import ALLOWED, FORMATS, TABLES, check_there
from qlora_core.data.sources.packed import is_packed
from qlora_core.data.sources.saved_set import INFO, SPLITS, STATE, arrow_files, is_saved_set, split_folder
from qlora_core.data.sources.stored import Wanted, stored_rows
from qlora_profiles.data_source import DataSource
from qlora_profiles.errors import UserError

NO_ROWS = (INFO, STATE, SPLITS, "dataset_infos.json", "package.json")
"""Files of a folder that end like data and are none."""
SHOWN = 5


class DataFile(NamedTuple):
    """One file of a source, and the name that a person knows it by; ``part`` is a sheet, or a file in a zip.

    ``saved`` is an Arrow file of a set that was saved with ``save_to_disk``.
    """

    path: Path
    name: str
    part: str = ""
    saved: bool = False


class Located(NamedTuple):
    """The files of a source in the order in which they are read, and what a person should know of the choice."""

    files: list[DataFile]
    notes: list[str]


def locate(source: DataSource, wanted: Wanted) -> Located:
    """The files that hold a source's rows. ``wanted`` tells which stored copy of a hub set is meant.

    Raises:
        UserError: nothing is there, or nothing that is data; a hub set that was not brought to this disk.
    """
    if source.hub:
        path, notes = stored_rows(source, wanted)
        return Located([DataFile(path, source.hub[0].rpartition("/")[2])], notes)
    if source.is_pattern:
        return _of_pattern(source)
    if source.path.is_dir():
        return _of_folder(source)
    check_there(source.path)
    if source.part and source.path.suffix.lower() not in (".zip", *TABLES):
        raise UserError(f"--data {source.whole}  a {source.path.suffix} file has no parts", f"--data {source.place}")
    return Located([DataFile(source.path, source.path.name, source.part)], [])


def _of_pattern(source: DataSource) -> Located:
    found = sorted(Path(name) for name in glob.glob(str(source.path), recursive=True))  # noqa: PTH207
    files = [path for path in found if path.is_file()]
    if not files:
        raise UserError(f"--data {source.place}  no file is called like that", f"a file, or a folder: {ALLOWED}")
    return _several(source, files)


def _of_folder(source: DataSource) -> Located:
    folder = source.path
    if is_saved_set(folder):
        chosen, notes = split_folder(folder, source.part)
        return Located([DataFile(file, f"{folder.name}/{file.name}", "", True) for file in arrow_files(chosen)], notes)
    if (folder / "config.json").is_file():
        raise UserError(f"--data {folder}  a model's folder", "a file, or a folder of data files")
    if source.part:
        raise UserError(f"--data {source.whole}  a folder of files has no parts", f"--data {source.place}")
    try:
        files = sorted(path for path in folder.iterdir() if _is_data(path))
    except OSError as error:
        raise UserError(f"--data {folder}  cannot be read: {error.strerror}", "check its permissions") from error
    if not files:
        raise UserError(f"--data {folder}  a folder without data files{_below(folder)}", f"files such as {ALLOWED}")
    return _several(source, files)


def _below(folder: Path) -> str:
    """Where data files lie deeper down, the pattern that takes them."""
    deeper = next((path for path in sorted(folder.glob("*/*")) if _is_data(path)), None)
    return f"; those below it: --data {folder / '*' / ('*' + deeper.suffix)}" if deeper else ""


def _is_data(path: Path) -> bool:
    named = path.with_suffix("") if is_packed(path) and path.suffix.lower() != ".zip" else path
    known = named.suffix.lower() in (*FORMATS, *TABLES, ".zip")
    return known and not path.name.startswith(".") and path.name not in NO_ROWS and path.is_file()


def _several(source: DataSource, files: list[Path]) -> Located:
    names = Counter(path.name for path in files)
    shown = [path.name if names[path.name] == 1 else path.as_posix() for path in files]
    more = f" and {len(files) - SHOWN:,} more" if len(files) > SHOWN else ""
    notes = [f"{source.place}: {len(files):,} files, {', '.join(shown[:SHOWN])}{more}"]
    return Located([DataFile(path, name) for path, name in zip(files, shown, strict=True)], notes)
