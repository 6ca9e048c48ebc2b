"""The records that a run leaves behind, by which what it trained is used again."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from qlora_core.session.environment import versions
from qlora_profiles import run_folder
from qlora_profiles.durable import write_whole
from qlora_profiles.errors import UserError
from qlora_profiles.plan import RunPlan


class BaseRecord(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an adapter belongs to, and how it is asked (``ChatTokenizer.asked_as``); written beside it."""

    model: str
    revision: str | None
    fingerprint: str
    model_type: str
    hidden_size: int
    num_layers: int
    stop_ids: tuple[int, ...]
    method: str
    system_prompt: str | None = None
    base_parts: dict[str, str] = {}
    """Digests of what the base was, as far as they are known (:meth:`RunPlan.base_parts`)."""
    asked_as: str = "chat"


def base_record(plan: RunPlan, stop_ids: tuple[int, ...], asked_as: str = "chat") -> BaseRecord:
    """The record of the base that a plan trains on."""
    recipe = plan.recipe_values()
    return BaseRecord(
        model=recipe.model,
        revision=recipe.revision,
        fingerprint=plan.model.fingerprint,
        model_type=plan.model.model_type,
        hidden_size=plan.model.hidden_size,
        num_layers=plan.model.num_layers,
        stop_ids=stop_ids,
        method=recipe.method,
        system_prompt=recipe.system_prompt,
        base_parts=plan.base_parts(),
        asked_as=asked_as,
    )


def save_training_config(plan: RunPlan, ran_with: Mapping[str, Any], output: Path) -> Path:
    """``training_config.json``: every setting's value as planned, the execution as it ran at the end (``ran_with``),
    and the versions that computed it."""
    values: dict[str, Any] = {}
    for scope in ("recipe", "execution", "run"):
        values[scope] = {name: resolved.value for name, resolved in getattr(plan, scope).items()}
        if scope == "execution":
            values["execution_at_end"] = dict(ran_with)
    path = output / run_folder.TRAINING_CONFIG
    text = json.dumps(values | {"versions": versions()}, indent=2, ensure_ascii=False, default=list)
    write_whole(path, text + "\n")
    return path


def remove_own(folder: Path) -> None:
    """Delete a merged model that an earlier end of the same run wrote.

    Raises:
        UserError: the folder is not ours to delete.
    """
    if not (folder / run_folder.BASE_RECORD).is_file():
        raise UserError(f"{folder}: holds something that this run did not write", "--output ANOTHER-FOLDER")
    shutil.rmtree(folder)
