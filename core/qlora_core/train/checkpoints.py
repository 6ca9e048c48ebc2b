"""Checkpoints that are complete or do not count.

A checkpoint is a folder ``checkpoint-N`` as transformers writes it. The file ``complete.json`` is written last, when
all others are on the disk to stay, so a kill or a power loss in the middle of a save leaves a folder that is never
resumed from. It holds a digest of each file: one that is no longer as it was written is not resumed from either.
"""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from qlora_profiles import codec
from qlora_profiles.digests import digests_of, first_changed
from qlora_profiles.durable import sync_tree
from qlora_profiles.errors import UserError
from qlora_profiles.plan import other_parts
from qlora_profiles.run_folder import COMPLETE_MARK, checkpoint_step
from qlora_profiles.run_folder import checkpoints as all_checkpoints


class Mark(Struct, frozen=True, kw_only=True):
    """What ``complete.json`` says: the optimizer step, the digest of the recipe trained, size and digest of each file.

    ``base`` are the digests of what the base was (:meth:`RunPlan.base_parts`). Older marks have neither these nor
    ``digests``.
    """

    step: int
    recipe: str
    files_bytes: dict[str, int] = {}
    digests: dict[str, str] = {}
    base: dict[str, str] = {}


def mark_complete(folder: Path, step: int, recipe_digest: str, base: Mapping[str, str] | None = None) -> None:
    """Put a whole checkpoint on the disk for good, then its mark.

    Raises:
        OSError: the disk does not take it.
    """
    sync_tree(folder)
    sizes = _sizes(folder)
    mark = Mark(
        step=step, recipe=recipe_digest, files_bytes=sizes, digests=digests_of(folder, sizes), base=dict(base or {})
    )
    codec.save(mark, folder / COMPLETE_MARK)


def unmark(folder: Path) -> None:
    """A checkpoint that is about to be written anew, or deleted, is not complete any more."""
    (folder / COMPLETE_MARK).unlink(missing_ok=True)


def delete_older(output: Path, step: int, kept: int) -> None:
    """Delete all but the newest ``kept`` complete checkpoints up to ``step``, which is complete, and unfinished ones.

    Folders of later steps are left: the run has not come to them yet.
    """
    older = [folder for folder in all_checkpoints(output) if 0 <= checkpoint_step(folder) <= step]
    complete = sorted(filter(is_complete, older), key=checkpoint_step, reverse=True)
    for folder in set(older) - set(complete[:kept]):
        if folder.is_dir() and not folder.is_symlink():
            unmark(folder)
            shutil.rmtree(folder, ignore_errors=True)


def recipes_in(output: Path) -> set[str]:
    """The digests of what complete checkpoints were trained with; no file of theirs is looked at."""
    found = set()
    for folder in filter(is_complete, all_checkpoints(output)):
        with suppress(UserError):
            found.add(codec.load(folder / COMPLETE_MARK, Mark).recipe)
    return found


def read_mark(folder: Path) -> Mark:
    """The mark of a checkpoint.

    Raises:
        UserError: there is none, it is damaged, or a file is missing, cut short, not as it was written or not readable.
    """
    mark, there = codec.load(folder / COMPLETE_MARK, Mark), _sizes(folder)
    for name, size in mark.files_bytes.items():
        if there.get(name) != size:
            what = f"has {there[name]:,} of {size:,} bytes" if name in there else "is missing"
            raise UserError(f"{folder / name} {what}")
    try:
        changed = first_changed(folder, mark.digests)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if changed is not None:
        raise UserError(f"{folder / changed} is not as it was written")
    return mark


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file of a checkpoint but the mark, by its path within."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != COMPLETE_MARK)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def newest(output: Path, warn: Callable[[str], None] = lambda message: None) -> Path | None:
    """The complete checkpoint with the highest step, or ``None``; ``warn`` is told of each damaged one above it."""
    found = _newest(output, warn)
    return found[0] if found else None


def _newest(output: Path, warn: Callable[[str], None]) -> tuple[Path, Mark] | None:
    for folder in sorted(filter(is_complete, all_checkpoints(output)), key=checkpoint_step, reverse=True):
        try:
            return folder, read_mark(folder)
        except UserError as error:
            warn(f"a damaged checkpoint was passed over: {error.message}")
    return None


def is_complete(folder: Path) -> bool:
    """Whether the save of this checkpoint finished."""
    return (folder / COMPLETE_MARK).is_file()


def choose(
    resume: str,
    output: Path,
    recipe_digest: str,
    warn: Callable[[str], None] = lambda message: None,
    base: Mapping[str, str] | None = None,
) -> Path | None:
    """Where to go on from: ``auto`` takes the newest complete one, ``never`` none, else the folder named.

    ``warn`` is told of damaged checkpoints that ``auto`` passes over; ``base`` is what the base is now, in parts.

    Raises:
        UserError: the folder is no complete checkpoint, a damaged one, or one of another recipe or base.
    """
    if resume == "never":
        return None
    found = _newest(output, warn) if resume == "auto" else (Path(resume), _marked(Path(resume), output))
    if found is None:
        return None
    folder, mark = found
    changed = other_parts(mark.base, base or {})
    if changed:
        ways = "put the base back, or start anew: --resume never --output ANOTHER-FOLDER"
        raise UserError(f"--resume {folder}: its base has another {' and another '.join(changed)} now", ways)
    if mark.recipe != recipe_digest:
        ways = f"qlora-run resume {folder.parent} (old settings)   or   --resume never --output ANOTHER-FOLDER"
        raise UserError(f"--resume {folder}: it was trained with another recipe", ways)
    return folder


def _marked(folder: Path, output: Path) -> Mark:
    """The mark of the checkpoint that a person named for ``output``. Raises UserError."""
    if not is_complete(folder):
        said = f"--resume {folder}: not a complete checkpoint (no {COMPLETE_MARK})"
        raise UserError(said, _instead_of(folder, output))
    try:
        return read_mark(folder)
    except UserError as error:
        said = f"--resume {folder}: a damaged checkpoint ({error.message})"
        raise UserError(said, _instead_of(folder, output)) from error


def _instead_of(folder: Path, output: Path) -> str:
    """The way on where a checkpoint cannot be used: the newest whole one, which may lie in another run's folder."""
    whole = newest(folder.parent)
    return f"--resume {whole}" if whole and folder.parent.resolve() != output.resolve() else "--resume auto"
