"""Copies of hub sets on this disk: what a child of the launcher fetched, and planning and training read.

Each lies in a folder of its own, named by what was asked for; ``source.json`` tells what it holds.
"""

import hashlib
import shutil
import time
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from qlora_profiles.data_source import DataSource
from qlora_profiles.errors import UserError
from qlora_profiles.places import cache_folder

RECORD, ROWS = "source.json", "rows.jsonl"
MOST_BYTES = 20 << 30
"""What all copies may take together; the one that was used longest ago goes first. Set by hand."""
IN_USE_SECONDS = 86_400.0
"""A copy that was used so lately may be that of a run that goes on."""


class Wanted(Struct, frozen=True, kw_only=True):
    """Which rows of a hub set are asked for: ``most`` by ``seed`` or the first ones; ``None`` for all."""

    most: int | None = None
    sample: str = "random"
    seed: int = 42


class Stored(Struct, frozen=True, kw_only=True):
    """What a copy holds: ``rows`` of the ``seen`` ones, of a commit of the hub."""

    name: str
    revision: str
    config: str
    split: str
    rows: int
    seen: int
    notes: tuple[str, ...] = ()


def folder_of(source: DataSource, wanted: Wanted) -> Path:
    """Where the copy of what is asked for lies, or would lie."""
    rows = (wanted.most, wanted.sample, wanted.seed if wanted.sample == "random" else 0) if wanted.most else ()
    key = hashlib.sha256(repr((source.hub, source.part, rows)).encode("utf-8")).hexdigest()[:16]
    name = (source.hub or (source.place, None))[0].replace("/", "--")[-60:]
    return cache_folder("data") / f"{name}-{key}"


def record_of(folder: Path) -> Stored | None:
    """What a copy says of itself; ``None`` where there is none, or not a whole one."""
    with suppress(OSError, msgspec.DecodeError):
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Stored)
        return record if (folder / ROWS).is_file() else None
    return None


def stored_rows(source: DataSource, wanted: Wanted) -> tuple[Path, list[str]]:
    """The file that holds a hub set's rows, and what a person should know of it.

    Raises:
        UserError: it was not fetched, or the copy is gone.
    """
    folder = folder_of(source, wanted)
    record = record_of(folder)
    if record is None:
        raise UserError(f"--data {source.whole}  its copy on this disk is gone", "the same command fetches it again")
    with suppress(OSError):
        (folder / RECORD).touch()
    return folder / ROWS, [_told(record), *record.notes]


def seen_rows(source: DataSource, wanted: Wanted) -> int | None:
    """How many rows the hub has of a set whose copy holds a part of them."""
    record = record_of(folder_of(source, wanted))
    return record.seen if record else None


def _told(record: Stored) -> str:
    of = f" of {record.seen:,}" if record.seen != record.rows else ""
    config = "" if record.config in ("", "default") else f"{record.config}, "
    return f"{record.name}: {config}{record.split}, {record.rows:,}{of} rows of commit {record.revision[:8]}"


def make_room(keep: Path) -> None:
    """Remove copies that were used longest ago until all take no more than they may; never ``keep`` or one in use."""
    folders = [folder for folder in cache_folder("data").iterdir() if (folder / RECORD).is_file()]
    ages = {folder: (folder / RECORD).stat().st_mtime for folder in folders}
    sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
    total = sum(sizes.values())
    for folder in sorted(folders, key=ages.__getitem__):
        if total <= MOST_BYTES:
            return
        if folder != keep and time.time() - ages[folder] > IN_USE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
            total -= sizes[folder]
