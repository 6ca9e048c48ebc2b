"""Finding and loading what a run left behind, for a chat or a merge."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_core.data import ChatTokenizer
from qlora_core.export.artifacts import BaseRecord
from qlora_core.export.merge import load_adapted, read_record
from qlora_core.export.readable import readable, saved_chat
from qlora_core.export.sealed import check_whole
from qlora_core.session.ranks import SINGLE
from qlora_profiles import codec
from qlora_profiles.errors import UserError
from qlora_profiles.jobs import ChatJob
from qlora_profiles.run_folder import ADAPTER, ADAPTER_CONFIG, BASE_RECORD, MERGED_MODEL


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatModel:
    """A model ready to answer."""

    model: Any
    chat: ChatTokenizer
    stop_ids: tuple[int, ...]
    system_prompt: str | None


def find(target: Path, merged: bool) -> Path:
    """The adapter or model folder that a person means by ``target``.

    Raises:
        UserError: nothing trained is there.
    """
    inside = (MERGED_MODEL, ADAPTER) if merged else (ADAPTER, MERGED_MODEL)
    for folder in (*(target / name for name in inside), target):
        if (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
            return folder
    if not target.is_dir():
        raise UserError(f"{target}: no such folder", "name a run's folder, an adapter or a model")
    raise UserError(
        f"{target}: holds neither {ADAPTER} nor {MERGED_MODEL}: nothing was finished here", f"qlora-run resume {target}"
    )


def load(job: ChatJob) -> ChatModel:
    """Load the model for ``job``: adapter on its base (in 4 bits on a card), or a whole model.

    Raises:
        UserError: nothing trained is there, or its base cannot be loaded or is another one.
    """
    folder = find(Path(job.target), job.merged)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    record, model = _load_adapter(folder, job) if is_adapter else _load_whole(folder, job)
    chat = saved_chat(folder, asked_as=record.asked_as if record else "chat")
    return ChatModel(
        model=model.eval(),
        chat=chat,
        stop_ids=record.stop_ids if record else tuple(chat.stop_ids),
        system_prompt=job.system_prompt or (record.system_prompt if record else None),
    )


def _load_adapter(folder: Path, job: ChatJob) -> tuple[BaseRecord, Any]:
    record = read_record(folder)
    return record, load_adapted(folder, record, job.base, cache=job.cache, **_loading_arguments(job, record))


def _load_whole(folder: Path, job: ChatJob) -> tuple[BaseRecord | None, Any]:
    from qlora_core.model.loading import explained
    from qlora_core.model.whole_weights import load_causal_lm

    check_whole(folder, f"qlora-run merge {folder.parent} -o ANOTHER-FOLDER")
    path = folder / BASE_RECORD
    record = codec.load(path, BaseRecord) if path.is_file() else None
    with readable(folder), explained(str(folder)):
        return record, load_causal_lm(str(folder), **_loading_arguments(job, record))


def _loading_arguments(job: ChatJob, record: BaseRecord | None) -> dict[str, Any]:
    """Device and precision: the card's 16-bit format, or float32 on CPU; 4 bits as asked or as it was trained."""
    import torch

    cuda = torch.cuda.is_available()
    dtype = _card_dtype() if cuda else torch.float32
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "device_map": {"": SINGLE.place("cuda" if cuda else "cpu")},
        "trust_remote_code": job.trust_remote_code,
    }
    trained_in_4bit = record is not None and record.method == "qlora-4"
    if job.load_in_4bit or (job.load_in_4bit is None and cuda and trained_in_4bit and not job.merged):
        from transformers import BitsAndBytesConfig

        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    return arguments


def _card_dtype() -> Any:
    import torch

    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
