"""What a run leaves behind: the adapter or the model, its tokenizer, and the records to use it again."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from qlora_core.session.environment import versions
from qlora_profiles import codec, run_folder
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
    asked_as: str = "chat"


def save_trained(
    model: Any, tokenizer: Any, plan: RunPlan, stop_ids: tuple[int, ...], output: Path, asked_as: str = "chat"
) -> Path:
    """Write the adapter folder (``lora_adapter``), or the whole model (``final_model``) after full training."""
    folder = output / (run_folder.MERGED_MODEL if plan.recipe_values().method == "full" else run_folder.ADAPTER)
    if folder.name == run_folder.MERGED_MODEL:
        set_stop(model, tokenizer, stop_ids)
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    codec.save(base_record(plan, stop_ids, asked_as), folder / run_folder.BASE_RECORD)
    return folder


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
        asked_as=asked_as,
    )


def set_stop(model: Any, tokenizer: Any, stop_ids: tuple[int, ...]) -> None:
    """Let the model's own generation settings end at the trained stop token."""
    model.generation_config.eos_token_id = list(stop_ids)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id or stop_ids[-1]
    model.config.use_cache = True


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
    path.write_text(text + "\n", encoding="utf-8")
    return path


def remove_own(folder: Path) -> None:
    """Delete a merged model that an earlier end of the same run wrote.

    Raises:
        UserError: the folder is not ours to delete.
    """
    if not (folder / run_folder.BASE_RECORD).is_file():
        raise UserError(f"{folder}: holds something that this run did not write", "--output ANOTHER-FOLDER")
    shutil.rmtree(folder)
