"""Checkpoints that are complete or do not count.

A checkpoint is a folder ``checkpoint-N`` as transformers writes it. The file ``complete.json`` is written
last, so a kill in the middle of a save leaves a folder that is never resumed from.
"""

import json
import re
from pathlib import Path

from qlora_profiles.errors import UserError

MARK = "complete.json"


def mark_complete(folder: Path, step: int, recipe_digest: str) -> None:
    """Write the mark of a whole checkpoint."""
    (folder / MARK).write_text(json.dumps({"step": step, "recipe": recipe_digest}), encoding="utf-8")


def newest(output: Path) -> Path | None:
    """The complete checkpoint with the highest step, or ``None``."""
    found = [(step_of(p), p) for p in output.glob("checkpoint-*") if is_complete(p)]
    return max(found)[1] if found else None


def is_complete(folder: Path) -> bool:
    """Whether the save of this checkpoint finished."""
    return (folder / MARK).is_file()


def step_of(folder: Path) -> int:
    """N of ``checkpoint-N``; -1 for another name."""
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match[1]) if match else -1


def choose(resume: str, output: Path, recipe_digest: str) -> Path | None:
    """Where to go on from: ``auto`` takes the newest complete one, ``never`` none, else the folder named.

    Raises:
        UserError: the folder is no complete checkpoint, or one of another recipe.
    """
    if resume == "never":
        return None
    folder = newest(output) if resume == "auto" else Path(resume)
    if folder is None:
        return None
    if not is_complete(folder):
        raise UserError(f"--resume {folder}: not a complete checkpoint (no {MARK})", "--resume auto")
    recorded = json.loads((folder / MARK).read_text(encoding="utf-8"))["recipe"]
    if recorded != recipe_digest:
        raise UserError(f"--resume {folder}: it was trained with another recipe", "--output ANOTHER-FOLDER")
    return folder
