"""Merging an adapter into its base, always in 16 or 32 bits.

Adding an adapter to 4-bit weights and rounding them again nearly erases it; so the base is loaded as it was
published, and the adapter is added there.
"""

from pathlib import Path
from typing import Any

from qlora_core.export.artifacts import BaseRecord, remove_own, set_stop
from qlora_core.export.readable import check_weights, readable
from qlora_profiles import codec, run_folder
from qlora_profiles.errors import UserError


def merge(
    adapter: Path,
    output: Path,
    base: str | None = None,
    dtype: str = "auto",
    *,
    cache: str | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Write the merged model (safetensors, tokenizer, generation settings) to ``output``.

    Args:
        adapter: an adapter folder.
        base: the base's folder or hub id, where it is not the one that the adapter names.
        dtype: of the merged weights; ``auto`` keeps the base's own.
        cache: folder of downloaded models, if not the hub's usual one.
        trust_remote_code: whether Python code that comes with the base may run.

    Raises:
        UserError: no adapter there, the base is another one or only its own code can load it, or ``output`` holds
            a model already.
    """
    from qlora_core.model.loading import saved_tokenizer

    if (output / "config.json").exists():
        raise UserError(f"{output}: holds a model already", "--output ANOTHER-FOLDER")
    record = read_record(adapter)
    loading: dict[str, Any] = {"cache": cache, "trust_remote_code": trust_remote_code}
    model = load_adapted(adapter, record, base, dtype=dtype, **loading).merge_and_unload()
    with readable(adapter):
        tokenizer = saved_tokenizer(adapter, trust_remote_code)
    set_stop(model, tokenizer, record.stop_ids)
    part = _empty_part(output, record)
    model.save_pretrained(str(part), safe_serialization=True)
    tokenizer.save_pretrained(str(part))
    part.replace(output) if not output.exists() else _move_into(part, output)
    return output


def _empty_part(output: Path, record: BaseRecord) -> Path:
    """The folder that the merge is written to first; what an interrupted one left there is deleted.

    The record goes in first: by it the leftover of a merge is told from a person's own folder.
    """
    part = output.with_name(output.name + ".part")
    if part.is_dir() and any(part.iterdir()):
        remove_own(part)
    part.mkdir(parents=True, exist_ok=True)
    codec.save(record, part / run_folder.BASE_RECORD)
    return part


def _move_into(part: Path, output: Path) -> None:
    """Fill an empty folder that a person made beforehand."""
    for file in part.iterdir():
        file.replace(output / file.name)
    part.rmdir()


def load_adapted(
    adapter: Path, record: BaseRecord, base: str | None, *, cache: str | None = None, **arguments: Any
) -> Any:
    """The base with its adapter on; ``arguments`` are those of ``from_pretrained``, such as the dtype.

    A hub model is looked for in ``cache``, and there in the adapter's revision unless it is another one.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from qlora_core.model.loading import explained

    source = base or record.model
    if not Path(source).is_dir():
        arguments |= {"revision": record.revision if source == record.model else None, "cache_dir": cache}
    check_weights(adapter)
    with readable(source), explained(source):
        model = AutoModelForCausalLM.from_pretrained(source, **arguments)
    check_base(model, record, source)
    with readable(adapter):
        return PeftModel.from_pretrained(model, str(adapter))


def read_record(adapter: Path) -> BaseRecord:
    """The record beside an adapter. Raises UserError when there is none."""
    if not (adapter / run_folder.ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{adapter}: no adapter here (no {run_folder.ADAPTER_CONFIG})",
            f"name a run's folder or its {run_folder.ADAPTER}",
        )
    return codec.load(adapter / run_folder.BASE_RECORD, BaseRecord)


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
