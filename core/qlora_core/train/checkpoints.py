"""Checkpoints that are complete or do not count.

A checkpoint is a folder ``checkpoint-N`` as transformers writes it. The file ``complete.json`` is written
last, so a kill in the middle of a save leaves a folder that is never resumed from.
"""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from qlora_profiles import codec
from qlora_profiles.errors import UserError
from qlora_profiles.run_folder import COMPLETE_MARK, checkpoint_step
from qlora_profiles.run_folder import checkpoints as all_checkpoints


class Mark(Struct, frozen=True, kw_only=True):
    """What ``complete.json`` says: the optimizer step, the digest of the recipe trained, and the size of each file."""

    step: int
    recipe: str
    files_bytes: dict[str, int] = {}


def mark_complete(folder: Path, step: int, recipe_digest: str) -> None:
    """Write the mark of a whole checkpoint. Raises OSError where the disk does not take it."""
    codec.save(Mark(step=step, recipe=recipe_digest, files_bytes=_sizes(folder)), folder / COMPLETE_MARK)


def read_mark(folder: Path) -> Mark:
    """The mark of a checkpoint. Raises UserError where there is none, a damaged one, or a file that was cut short."""
    mark, there = codec.load(folder / COMPLETE_MARK, Mark), _sizes(folder)
    for name, size in mark.files_bytes.items():
        if there.get(name) != size:
            what = f"has {there[name]:,} of {size:,} bytes" if name in there else "is missing"
            raise UserError(f"{folder / name} {what}")
    return mark


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint but the mark, by its path within."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE_MARK)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def newest(output: Path, warn: Callable[[str], None] = lambda message: None) -> Path | None:
    """The complete checkpoint with the highest step, or ``None``; ``warn`` is told of each damaged one above it."""
    for folder in sorted(filter(is_complete, all_checkpoints(output)), key=checkpoint_step, reverse=True):
        try:
            read_mark(folder)
        except UserError as error:
            warn(f"a damaged checkpoint was passed over: {error.message}")
        else:
            return folder
    return None


def is_complete(folder: Path) -> bool:
    """Whether the save of this checkpoint finished."""
    return (folder / COMPLETE_MARK).is_file()


def choose(
    resume: str, output: Path, recipe_digest: str, warn: Callable[[str], None] = lambda message: None
) -> Path | None:
    """Where to go on from: ``auto`` takes the newest complete one, ``never`` none, else the folder named.

    ``warn`` is told of damaged checkpoints that ``auto`` passes over.

    Raises:
        UserError: the folder is no complete checkpoint, a damaged one, or one of another recipe.
    """
    if resume == "never":
        return None
    folder = newest(output, warn) if resume == "auto" else Path(resume)
    if folder is None:
        return None
    if _marked(folder).recipe != recipe_digest:
        ways = f"qlora-run resume {folder.parent} (old settings)   or   --resume never --output ANOTHER-FOLDER"
        raise UserError(f"--resume {folder}: it was trained with another recipe", ways)
    return folder


def _marked(folder: Path) -> Mark:
    """The mark of the checkpoint that a person named. Raises UserError."""
    if not is_complete(folder):
        raise UserError(f"--resume {folder}: not a complete checkpoint (no {COMPLETE_MARK})", "--resume auto")
    try:
        return read_mark(folder)
    except UserError as error:
        raise UserError(f"--resume {folder}: a damaged checkpoint ({error.message})", "--resume auto") from error
