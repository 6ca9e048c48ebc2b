"""Merging an adapter into its base, always in 16 or 32 bits.

Adding an adapter to 4-bit weights and rounding them again nearly erases it; so the base is loaded as it was
published, and the adapter is added there. What was published in 4 or 8 bits is made 16 bits first: those are the
weights that the adapter was trained on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlora_core.export.artifacts import BaseRecord, remove_own
from qlora_core.export.model_config import CONFIG
from qlora_core.export.model_folder import Base, save_model
from qlora_core.export.readable import readable, saved_chat
from qlora_core.export.sealed import check_whole, seal
from qlora_core.export.tokenizer_copy import Trained, copy_tokenizer
from qlora_profiles import codec, run_folder
from qlora_profiles.durable import sync_folder
from qlora_profiles.errors import UserError

if TYPE_CHECKING:
    from qlora_core.export.merge_witness import MergeWitness


def merge(
    adapter: Path,
    output: Path,
    base: str | None = None,
    dtype: str = "auto",
    *,
    cache: str | None = None,
    trust_remote_code: bool = False,
    warn: Callable[[str], None] = print,
    witness: "MergeWitness | None" = None,
    record: BaseRecord | None = None,
) -> Path:
    """Write the merged model (safetensors, tokenizer, generation settings) to ``output``.

    Args:
        adapter: an adapter folder.
        base: the base's folder or hub id, where it is not the one that the adapter names.
        dtype: of the merged weights; ``auto`` keeps the base's own.
        cache: folder of downloaded models, if not the hub's usual one.
        trust_remote_code: whether Python code that comes with the base may run.
        warn: told where plain transformers does not read the tokenizer as it was trained with.
        witness: looks at the model before the adapter is merged and after.
        record: the adapter's, where it was read, and the adapter found whole, already.

    Raises:
        UserError: no adapter there, the base is another one or only its own code can load it, or ``output`` holds
            a model already.
    """
    if (output / "config.json").exists():
        raise UserError(f"{output}: holds a model already", "--output ANOTHER-FOLDER")
    record, chat = record or read_record(adapter), saved_chat(adapter)
    loading: dict[str, Any] = {"cache": cache, "trust_remote_code": trust_remote_code}
    model = load_adapted(adapter, record, base, dtype=dtype, in_16_bits=True, **loading)
    if witness:
        witness.adapted(model)
    model = model.merge_and_unload()
    if witness:
        witness.merged(model)
    part = _empty_part(output, record)
    save_model(model, base_of(record, base, cache), part, adapter, record.stop_ids)
    trained = Trained(chat.template, record.stop_ids[0])
    if fault := copy_tokenizer(adapter, part, trained, trust_remote_code=trust_remote_code):
        warn(f"{output}: {fault}")
    seal(part)
    part.replace(output) if not output.exists() else _move_into(part, output)
    sync_folder(output.parent)
    return output


def base_of(record: BaseRecord, base: str | None, cache: str | None) -> Base:
    """Where the base named, or else the adapter's own, lies. A hub model's revision is that of the adapter's own."""
    source = base or record.model
    where: dict[str, Any] = {}
    if not Path(source).is_dir():
        where = {"revision": record.revision if source == record.model else None, "cache_dir": cache}
    return Base(source, where)


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
    adapter: Path,
    record: BaseRecord,
    base: str | None,
    *,
    cache: str | None = None,
    in_16_bits: bool = False,
    **arguments: Any,
) -> Any:
    """The base with its adapter on; ``arguments`` are those of ``from_pretrained``, such as the dtype.

    A hub model is looked for in ``cache``, and there in the adapter's revision unless it is another one.
    ``in_16_bits`` makes ordinary weights, in main memory, of those that were published in 4 or 8 bits.

    Raises:
        UserError: base or adapter is damaged, not all there or no numbers, or they do not belong together.
    """
    from qlora_core.model.loading import explained
    from qlora_core.model.saved_adapter import put_on
    from qlora_core.model.whole_weights import load_causal_lm

    where = base_of(record, base, cache)
    with readable(where.source), explained(where.source):
        dequantised = in_16_bits and is_bitsandbytes(where)
        if dequantised:
            arguments |= {"device_map": {"": "cpu"}}
        model = load_causal_lm(where.source, **where.arguments, **arguments)
    check_base(model, record, where.source)
    return put_on(_dequantised(model) if dequantised else model, adapter)


def _dequantised(model: Any) -> Any:
    """The model with ordinary weights, which no longer asks to be saved in the form that it was read from."""
    ordinary = model.dequantize()
    ordinary._weight_conversions = [
        conversion
        for conversion in getattr(ordinary, "_weight_conversions", None) or ()
        if not any("bitsandbytes" in type(step).__module__ for step in getattr(conversion, "operations", ()))
    ]
    return ordinary


def is_bitsandbytes(base: Base) -> bool:
    """Whether a base was published in bitsandbytes' 4 or 8 bits."""
    quantisation = base.settings(CONFIG).get("quantization_config") or {}
    return bool(quantisation.get("quant_method") == "bitsandbytes" or quantisation.get("load_in_4bit"))


def read_record(adapter: Path) -> BaseRecord:
    """The record beside an adapter. Raises UserError when there is none, or the adapter is damaged."""
    if not (adapter / run_folder.ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{adapter}: no adapter here (no {run_folder.ADAPTER_CONFIG})",
            f"name a run's folder or its {run_folder.ADAPTER}",
        )
    check_whole(adapter, f"qlora-run replay {adapter.parent}")
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
