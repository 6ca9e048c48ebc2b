"""Writing what was trained: the adapter or the model, with the base's tokenizer as it was trained with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from qlora_core.data import ChatTokenizer
from qlora_core.data.chat.tokenizer_source import tokenizer_folder
from qlora_core.export.artifacts import base_record
from qlora_core.export.model_folder import Base, save_model
from qlora_core.export.sealed import seal
from qlora_core.export.tokenizer_copy import Trained, copy_tokenizer
from qlora_core.model.loading import hub_arguments, local_model
from qlora_profiles import codec, run_folder
from qlora_profiles.plan import RunPlan


def save_trained(
    model: Any, chat: ChatTokenizer, plan: RunPlan, stop_ids: tuple[int, ...], output: Path, warn: Callable[[str], None]
) -> Path:
    """Write the adapter folder (``lora_adapter``), or the whole model (``final_model``) after full training.

    The base's tokenizer lies beside it, with the chat template and the end of an answer trained with;
    ``warn`` is told where plain transformers does not read it so.
    """
    recipe, run = plan.recipe_values(), plan.run_values()
    source = local_model(recipe, run)
    tokenizer = tokenizer_folder(recipe, run)
    if recipe.method == "full":
        folder = output / run_folder.MERGED_MODEL
        save_model(model, Base(source, hub_arguments(recipe, run, source)), folder, tokenizer, stop_ids)
    else:
        folder = output / run_folder.ADAPTER
        model.save_pretrained(str(folder), safe_serialization=True)
    trained = Trained(chat.template, stop_ids[0])
    if fault := copy_tokenizer(tokenizer, folder, trained, trust_remote_code=run.trust_remote_code):
        warn(f"{folder}: {fault}")
    codec.save(base_record(plan, stop_ids, chat.asked_as), folder / run_folder.BASE_RECORD)
    seal(folder)
    return folder
