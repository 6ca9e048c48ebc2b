"""A data set as ``save_to_disk`` of ``datasets`` writes it: a folder of Arrow files, or one for each split."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_core.data.sources.formats import Row, Rows
from qlora_profiles.errors import EnvironmentProblem, UserError, first_line
from qlora_profiles.suggest import hint

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
USUAL_SPLIT = "train"


def is_saved_set(folder: Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` wrote."""
    return (folder / STATE).is_file() or (folder / SPLITS).is_file()


def split_folder(folder: Path, part: str) -> tuple[Path, list[str]]:
    """The folder of the split that is meant, and which others are there.

    Raises:
        UserError: there is no such split; names those that are.
    """
    if not (folder / SPLITS).is_file():
        if part:
            raise UserError(f"--data {folder}#{part}  a saved set without splits", f"--data {folder}")
        return folder, []
    splits = [str(name) for name in _json(folder / SPLITS).get("splits", [])]
    chosen = part or (splits[0] if len(splits) == 1 else USUAL_SPLIT)
    if chosen not in splits:
        near = hint(chosen, splits) if part else ""
        fix = f"--data {folder}#{splits[0]}" if splits else None
        raise UserError(f"--data {folder}  has no split {chosen}{near}: {', '.join(splits) or 'none'}", fix)
    others = [name for name in splits if name != chosen]
    notes = [f"{folder.name}: the split {chosen}; not read: {', '.join(others)}"] if others else []
    return folder / chosen, notes


def arrow_files(folder: Path) -> list[Path]:
    """The Arrow files of one saved split, in order.

    Raises:
        UserError: its record cannot be read, or a file is gone.
    """
    files = [folder / str(entry["filename"]) for entry in _json(folder / STATE).get("_data_files", [])]
    missing = next((file for file in files if not file.is_file()), None)
    if missing or not files:
        said = f"{missing.name} is gone" if missing else "no Arrow files"
        raise UserError(f"--data {folder}  is not whole: {said}", "save_to_disk once more")
    return files


def arrow_rows(path: Path) -> Rows:
    """Rows of an Arrow file, a batch in memory at a time; ``line`` is the row's number.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        UserError: it is damaged.
    """
    return (Row(number, columns) for number, columns in enumerate(_columns(path), 1))


def _columns(path: Path) -> Iterator[dict[str, object]]:
    try:
        import pyarrow
    except ImportError as error:
        raise EnvironmentProblem("Arrow files need the package pyarrow", "pip install pyarrow") from error
    try:
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
            for batch in batches:
                for part in range(0, batch.num_rows, 1000):
                    yield from batch.slice(part, 1000).to_pylist()
    except Exception as error:  # as for Parquet: a damaged file raises nearly anything
        said = f"{path.name}  a damaged Arrow file ({type(error).__name__}: {first_line(error)})"[:200]
        raise UserError(said, "save_to_disk once more") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--data {path}  cannot be read: {first_line(error)}", "save_to_disk once more") from error
    return found if isinstance(found, dict) else {}
