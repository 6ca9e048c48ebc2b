"""Putting a stored adapter on its base: all of it, nothing else, and numbers only."""

from pathlib import Path
from typing import Any

from qlora_core.model.watched_weights import WatchedWeights
from qlora_profiles.errors import UserError, first_line
from qlora_profiles.machine_errors import is_out_of_memory
from qlora_profiles.run_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from qlora_profiles.weight_names import counted

WEIGHTS = (ADAPTER_WEIGHTS, "adapter_model.bin")
TRAIN_AGAIN = "the adapter as it was saved, or one of another checkpoint"


def put_on(model: Any, folder: Path) -> Any:
    """PEFT's wrapper around ``model`` with the adapter in ``folder`` on.

    PEFT alone starts what is missing anew, with a warning, and drops what fits nowhere without one.

    Raises:
        UserError: the adapter is damaged, not all there, for another model, or holds no numbers.
    """
    from peft import PeftConfig, get_peft_model

    if not any((folder / name).is_file() for name in WEIGHTS):
        raise UserError(f"{folder}: an adapter's config without its weights ({WEIGHTS[0]})", TRAIN_AGAIN)
    file = folder / ADAPTER_CONFIG
    try:
        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        adapted = get_peft_model(model, config)
        file = next(folder / name for name in WEIGHTS if (folder / name).is_file())
        found = adapted.load_adapter(str(folder), "default")
    except Exception as error:  # damaged json, headers, shapes: each is an error of another library
        raise _explained(file, error) from error
    _check_names(folder, found)
    _check_numbers(folder, adapted)
    return adapted


def _explained(file: Path, error: Exception) -> Exception:
    """One line for what PEFT and safetensors raise of a file; memory that ran out stays what it is."""
    text = str(error)
    if isinstance(error, ImportError) or is_out_of_memory(error):
        return error
    if "size mismatch" in text:
        where = next((line.strip() for line in text.splitlines() if "size mismatch" in line), "")
        return UserError(
            f"{file}: the adapter is of a model of another shape ({where.split(' with ')[0]})",
            "--base MODEL, with the one that it is for",
        )
    return UserError(f"{file}: the adapter cannot be read ({type(error).__name__}: {first_line(error)})", TRAIN_AGAIN)


def _check_names(folder: Path, found: Any) -> None:
    if found.missing_keys:
        raise UserError(f"{folder}: missing in the adapter: {counted(found.missing_keys)}", TRAIN_AGAIN)
    if found.unexpected_keys:
        said = f"this base has no layer for {counted(found.unexpected_keys)}"
        raise UserError(
            f"{folder}: the adapter is not for this model: {said}", "--base MODEL, with the one that it is for"
        )


def _check_numbers(folder: Path, adapted: Any) -> None:
    weights = WatchedWeights()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            weights.look(name, parameter)
    broken = weights.broken()
    if broken:
        raise UserError(f"{folder}: the adapter is damaged: NaN or infinite values in {counted(broken)}", TRAIN_AGAIN)
