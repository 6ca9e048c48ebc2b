"""Merging an adapter into its base, always in 16 or 32 bits.

Adding an adapter to 4-bit weights and rounding them again nearly erases it; so the base is loaded as it was
published, and the adapter is added there.
"""

from pathlib import Path
from typing import Any

from qlora_core.artifacts import BASE_RECORD, BaseRecord, set_stop
from qlora_profiles import codec
from qlora_profiles.errors import UserError


def merge(adapter: Path, output: Path, base: str | None = None, dtype: str = "auto") -> Path:
    """Write the merged model (safetensors, tokenizer, generation settings) to ``output``.

    Args:
        adapter: an adapter folder.
        base: the base's folder or hub id, where it is not the one that the adapter names.
        dtype: of the merged weights; ``auto`` keeps the base's own.

    Raises:
        UserError: no adapter there, the base is another one, or ``output`` holds a model already.
    """
    from transformers import AutoTokenizer

    if (output / "config.json").exists():
        raise UserError(f"{output}: holds a model already", "--output ANOTHER-FOLDER")
    record = read_record(adapter)
    model = load_adapted(adapter, record, base, dtype).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(str(adapter))
    set_stop(model, tokenizer, record.stop_ids)
    part = output.with_name(output.name + ".part")
    model.save_pretrained(str(part), safe_serialization=True)
    tokenizer.save_pretrained(str(part))
    codec.save(record, part / BASE_RECORD)
    part.replace(output) if not output.exists() else _move_into(part, output)
    return output


def _move_into(part: Path, output: Path) -> None:
    """Fill an empty folder that a person made beforehand."""
    for file in part.iterdir():
        file.replace(output / file.name)
    part.rmdir()


def load_adapted(adapter: Path, record: BaseRecord, base: str | None, dtype: str = "auto", **arguments: Any) -> Any:
    """The base with its adapter on, in the base's own precision unless told otherwise."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from qlora_core.loading import explained

    source = base or record.model
    with explained(source):
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, revision=None if Path(source).is_dir() else record.revision, **arguments
        )
    check_base(model, record, source)
    return PeftModel.from_pretrained(model, str(adapter))


def read_record(adapter: Path) -> BaseRecord:
    """The record beside an adapter. Raises UserError when there is none."""
    if not (adapter / "adapter_config.json").is_file():
        raise UserError(
            f"{adapter}: no adapter here (no adapter_config.json)", "name a run's folder or its lora_adapter"
        )
    return codec.load(adapter / BASE_RECORD, BaseRecord)


def check_base(model: Any, record: BaseRecord, source: str) -> None:
    """Refuse a base whose shape is not the adapter's.

    Raises:
        UserError: it is another architecture or size.
    """
    config = model.config.get_text_config()
    found = (config.model_type, config.hidden_size, config.num_hidden_layers)
    wanted = (record.model_type, record.hidden_size, record.num_layers)
    if found != wanted:
        trained_on = f"it was trained on {record.model}, {_shape(wanted)}"
        raise UserError(
            f"{source}: another base than the adapter's ({_shape(found)}; {trained_on})",
            f"--base {record.model}",
        )


def _shape(parts: tuple[str, int, int]) -> str:
    return f"{parts[0]}, {parts[2]} layers of {parts[1]}"
