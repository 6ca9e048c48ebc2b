"""The table of foreign names: every flag and key of other scripts that is read, and as what.

Only meanings that are exact have a row; a name that could mean two things is left unknown, so that it is told.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from qlora_profiles.alias import Alias, Where, word_of
from qlora_profiles.units import MIB, parse_bytes

SECTIONS: dict[str, str] = {
    "quantization_config": "quantization",
    "bnb_config": "quantization",
    "quantization": "quantization",
    "lora_config": "lora",
    "peft_config": "lora",
    "lora": "lora",
    "training_args": "training",
    "training_arguments": "training",
    "training_config": "training",
    "sft_config": "training",
    "training": "training",
    "model_config": "model",
    "model_args": "model",
    "data_config": "data",
    "data_args": "data",
    "recipe": "own",
    "execution": "own",
    "run": "own",
}
"""Nested sections of a config file, by the family that their keys belong to."""


def _same(target: str, *names: str, where: tuple[Where, ...] = ("train",), note: str = "") -> list[Alias]:
    """Other names of one setting, value and all."""
    return [Alias(name=name, to=(target,), where=where, note=note) for name in names]


def _left_out(note: str, *names: str) -> list[Alias]:
    """Names that are read and set nothing, for the same reason."""
    return [Alias(name=name, note=note) for name in names]


def _only(name: str, *harmless: str, note: str) -> Alias:
    """A feature that is not here: its "off" is read and left out, anything else is refused."""
    return Alias(name=name, words={word: {} for word in harmless}, note=note)


def _switch(name: str, on: Mapping[str, Any], off: Mapping[str, Any], note: str = "", **more: Any) -> Alias:
    """A true/false name that chooses values of other settings."""
    to = tuple(dict.fromkeys((*on, *off)))
    return Alias(name=name, to=to, words={"true": on, "false": off, "null": {}}, note=note, **more)


def _part(name: str, part: str, to: str, convert: Callable[[Any], Any], **more: Any) -> Alias:
    return Alias(name=name, to=(to,), part=part, convert=convert, **more)


def _method_switch(name: str) -> Alias:
    words: dict[str, dict[str, Any]] = {"true": {name: True}, "false": {name: False}, "null": {}}
    return Alias(name=name, to=("method",), part=name, words=words, note=METHOD_NOTE)


def _count(raw: Any) -> int:
    """A whole number from 1 up. Raises ValueError."""
    text = str(raw).strip()
    if isinstance(raw, bool) or not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{raw!r} is not allowed; an integer, at least 1")
    return int(text)


def _vram(raw: Any) -> Any:
    """Bytes from ``12GiB``; a small bare number is refused, for nobody means twelve bytes."""
    if word_of(raw) in ("auto", "null"):
        return None
    try:
        count = parse_bytes(str(raw))
    except OverflowError as error:
        raise ValueError(f"{raw!r} is no size; write it like 12GiB") from error
    if count < MIB:
        raise ValueError(f"{raw!r} has no unit; write it like 12GiB")
    return count


def _room(raw: Any) -> Any:
    """Bytes from ``4GiB``, or 0 for nothing."""
    return 0 if str(raw).strip() == "0" else _vram(raw)


def _column(role: str) -> Callable[[Any], str]:
    return lambda raw: f"{role}={raw}"


METHOD_NOTE = (
    "use_qlora, use_lora and the number of bits are read together: quantised is qlora-4 or qlora-8, "
    "use_lora without quantisation is lora, both switched off is full"
)
BATCH_NOTE = (
    "batch x accumulation is examples_per_step, counted for one card; how they are cut into micro-batches is "
    "worked out. Without gradient_accumulation_steps 16 is assumed (4 for batch_size)"
)
CUT_NOTE = "batch x accumulation is examples_per_step; without a batch 1 is assumed"
EVAL_BATCH_NOTE = "held-out rows are cut by the token budget, which changes no result"
NO_PADDING_NOTE = "no padding exists here: sequences are laid end to end, so lengths need no grouping"
SAVES_NOTE = "checkpoints are written every save_steps, and whenever a run stops"
EVAL_NOTE = "held-out loss is measured every eval_steps; val_size 0 switches it off"
BEST_NOTE = "keep decides: the adapter of the best held-out loss, or the last"
RECOMPUTE_NOTE = "as many layers recompute as memory asks for, with the same result; false forces none to"
DTYPE_NOTE = "without true, the machine's native number format is chosen"
KERNEL_NOTE = "without a counterpart, the fastest kernel that works is chosen, with the same result"
LAUNCH_NOTE = "worked out from the machine; changes no result"
LOG_NOTE = "the folder of the run holds its own log and events"
PACK_NOTE = "sequences share a micro-batch without seeing each other, and a step keeps its number of examples"

DTYPES: dict[str, dict[str, Any]] = {
    word: {"compute_dtype": dtype}
    for dtype, words in {
        "bfloat16": ("bf16", "torch.bfloat16"),
        "float16": ("fp16", "half", "torch.float16"),
        "float32": ("fp32", "float", "torch.float32"),
    }.items()
    for word in words
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw_torch": {"optimizer": "adamw", "optimizer_kernel": "plain"},
    "adamw_torch_fused": {"optimizer": "adamw", "optimizer_kernel": "fused"},
    "adamw_hf": {"optimizer": "adamw", "optimizer_kernel": "plain"},
    "paged_adamw": {"optimizer": "adamw", "optimizer_kernel": "paged"},
    "paged_adamw_32bit": {"optimizer": "adamw", "optimizer_kernel": "paged"},
    "adamw_8bit": {"optimizer": "adamw-8bit"},
    "adamw_bnb_8bit": {"optimizer": "adamw-8bit"},
    "paged_adamw_8bit": {"optimizer": "adamw-8bit", "optimizer_kernel": "paged"},
}
KERNELS: dict[str, dict[str, Any]] = {
    "flash_attention_2": {"attention": "flash"},
    "fa2": {"attention": "flash"},
    "sdpa": {"attention": "sdpa"},
    "eager": {},
    "auto": {},
    "disabled": {},
    "null": {},
}
ALL_LINEAR = ("all-linear",)
TARGETS: dict[str, dict[str, Any]] = {
    word: {"target_modules": ALL_LINEAR} for word in ("null", "all", "auto", "all_linear")
}
TRACKERS: dict[str, dict[str, Any]] = {
    "null": {"report_to": ()},
    "[]": {"report_to": ()},
    "false": {"report_to": ()},
    "no": {"report_to": ()},
    "all": {"report_to": ("tensorboard", "wandb")},
}
BITS: dict[str, dict[str, Any]] = {"4": {"bits": 4}, "8": {"bits": 8}, "null": {}}

_MODEL = [
    *_same("model", "repo_id", "model_name_or_path", "model_path", "base_dir", "base_model", "model_name", "model_id"),
    *_same("model", "pretrained_model_name_or_path", "base_model_name_or_path"),
    *_same("revision", "model_revision"),
    *_same("cache", "cache_dir"),
    *(_method_switch(name) for name in ("use_lora", "use_qlora", "load_in_4bit", "load_in_8bit")),
    *(
        Alias(name=name, to=("method",), part="bits", words=BITS, note=METHOD_NOTE)
        for name in ("quantization_bit", "bits")
    ),
    Alias(
        name="finetuning_type",
        to=("method",),
        part="use_lora",
        words={"lora": {"use_lora": True}, "full": {"use_lora": False}},
        note=METHOD_NOTE,
    ),
    *_same("quant_type", "bnb_4bit_quant_type"),
    *_same("double_quant", "bnb_4bit_use_double_quant", "double_quantization"),
    _switch("use_unsloth", {"backend": "unsloth"}, {"backend": "peft"}),
]

_DATA = [
    *_same("data", "data_path", "dataset_path", "data_file", "dataset_file", "train_file", "input"),
    Alias(
        name="format",
        to=("data_format",),
        refused={"sample": "qlora-run demo"},
        note="rows are read from the file itself, no prepared copy is written; sample data is in the demo",
    ),
    *_same("max_samples", "num_samples", "max_train_samples", note="N rows drawn by the seed; else: sample first"),
    *(
        Alias(name=f"{role}_col", to=("field",), convert=_column(role), adds=True, note=f"field {role}=NAME")
        for role in ("messages", "instruction", "input", "output", "system", "text")
    ),
    Alias(name="dataset_text_field", to=("field",), convert=_column("text"), adds=True, note="field text=NAME"),
    *_same("val_size", "val_set_size"),
    *_same("max_length", "model_max_length", "cutoff_len", "max_seq_length", "max_seq_len", "sequence_len"),
    *_same("dataset_workers", "preprocessing_num_workers", "dataset_num_proc"),
    _switch("train_on_inputs", {"loss_on": "all"}, {"loss_on": "assistant"}),
    _switch("assistant_only_loss", {"loss_on": "assistant"}, {"loss_on": "all"}),
    *_left_out(NO_PADDING_NOTE, "group_by_length", "length_column_name", "pad_to_multiple_of", "padding_side"),
    *_left_out(PACK_NOTE, "packing"),
]

_LEARNING = [
    *(
        _part(name, "batch", "examples_per_step", _count, note=BATCH_NOTE)
        for name in ("per_device_train_batch_size", "micro_batch_size", "batch_size")
    ),
    _part("gradient_accumulation_steps", "accumulation", "examples_per_step", _count, note=CUT_NOTE),
    *_same("epochs", "num_train_epochs", "num_epochs"),
    Alias(name="max_steps", to=("max_steps",), words={"-1": {"max_steps": None}}, free=True, note="-1: no limit"),
    *_same("learning_rate", "lr"),
    *_same("lr_scheduler", "lr_scheduler_type"),
    *_same("seed", "random_seed", "random_state"),
    Alias(name="optim", to=("optimizer", "optimizer_kernel"), words=OPTIMIZERS),
    Alias(name="optimizer", to=("optimizer", "optimizer_kernel"), words=OPTIMIZERS, free=True),
]

_ADAPTER = [
    *_same("lora_r", "r", "lora_rank", "rank"),
    Alias(name="alpha", to=("lora_alpha",), section="lora"),
    Alias(name="dropout", to=("lora_dropout",), section="lora"),
    *(
        Alias(name=name, to=("target_modules",), words=TARGETS, free=True, note="null: every linear layer")
        for name in ("target_modules", "lora_target_modules", "lora_target")
    ),
    *_same("lora_bias", "bias"),
]

_MACHINE = [
    _switch("gradient_checkpointing", {}, {"layers_recomputed": 0}, RECOMPUTE_NOTE),
    _switch("fp16", {"compute_dtype": "float16"}, {}, DTYPE_NOTE),
    _switch("bf16", {"compute_dtype": "bfloat16"}, {}, DTYPE_NOTE),
    *(
        Alias(name=name, to=("compute_dtype",), words=DTYPES, free=True)
        for name in ("compute_dtype", "bnb_4bit_compute_dtype", "torch_dtype", "dtype")
    ),
    *(
        Alias(name=name, to=("attention",), words=KERNELS, note=KERNEL_NOTE)
        for name in ("attn_implementation", "flash_attn")
    ),
    _switch("flash_attention_2", {"attention": "flash"}, {}, KERNEL_NOTE),
    _switch("flash_attention", {"attention": "flash"}, {}, KERNEL_NOTE),
    _switch("use_flash_attention_2", {"attention": "flash"}, {}, KERNEL_NOTE),
    _switch("use_liger_kernel", {}, {}, KERNEL_NOTE),
    *_same("pin_memory", "dataloader_pin_memory"),
    *_same("workers", "dataloader_num_workers"),
    *(
        Alias(name=name, to=("vram_budget_bytes",), convert=_vram, note="a size with its unit: 12GiB")
        for name in ("vram_budget_bytes", "vram", "vram_budget", "max_vram")
    ),
    *(
        Alias(name=name, to=("leave_free_bytes",), convert=_room, note="a size with its unit: 4GiB")
        for name in ("leave_free_bytes", "leave_free")
    ),
    *_left_out(LAUNCH_NOTE, "device_map", "low_cpu_mem_usage", "torch_compile", "tf32", "use_cache"),
    *_left_out(LAUNCH_NOTE, "ddp_timeout", "ddp_find_unused_parameters", "gradient_checkpointing_kwargs"),
    *_left_out(LAUNCH_NOTE, "bnb_4bit_quant_storage", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
]

_RUN = [
    *_same("output", "output_dir", "output_path"),
    *_same("overwrite", "overwrite_output_dir"),
    *_same("merge", "merge_and_save"),
    *(
        Alias(
            name=name,
            to=("resume",),
            words={"true": {"resume": "auto"}, "false": {"resume": "never"}, "null": {}},
            free=True,
            note="true: auto, from the newest checkpoint if there is one; false: never; else a checkpoint folder",
        )
        for name in ("resume", "resume_from_checkpoint")
    ),
    Alias(name="report_to", to=("report_to",), words=TRACKERS, free=True, note="none: no tracker"),
    Alias(name="config_file", to=("config",)),
    *_left_out(EVAL_BATCH_NOTE, "per_device_eval_batch_size", "eval_batch_size", "eval_accumulation_steps"),
    *_left_out(SAVES_NOTE, "save_strategy", "save_safetensors", "save_only_model"),
    *_left_out(EVAL_NOTE, "eval_strategy", "evaluation_strategy", "do_eval"),
    *_left_out(BEST_NOTE, "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    *_left_out(LOG_NOTE, "logging_dir", "logging_strategy", "logging_first_step", "disable_tqdm", "log_level"),
    *_left_out(LOG_NOTE, "plot_loss", "include_num_input_tokens_seen"),
    *_left_out("the program reads the columns it knows", "remove_unused_columns", "label_names", "overwrite_cache"),
]

_ABSENT = [
    _only("do_train", "true", note="training is what the command does"),
    _only("stage", "sft", note="supervised fine-tuning is what is done here"),
    _only("task_type", "causal_lm", note="causal language models are what is trained here"),
    _only("peft_type", "lora", note="the adapter is a LoRA"),
    _only("inference_mode", "false", note="a new adapter is trained"),
    _only("init_lora_weights", "true", note="the usual first values: B is zero"),
    _only("modules_to_save", "null", "[]", note="only the adapter is trained"),
    _only("use_dora", "false", note="not available"),
    _only("fan_in_fan_out", "false", note="not available"),
    _only("label_smoothing_factor", "0", "0.0", note="not available"),
    _only("neftune_noise_alpha", "null", note="not available"),
    _only("push_to_hub", "false", note="nothing is uploaded"),
    _only("deepspeed", "null", note="not available"),
    _only("fsdp", "null", "[]", "false", note="not available"),
]

_BASE = ("model", "base_model", "base_dir", "model_name_or_path", "model_path", "repo_id")
_ADAPTER_NAMES = ("adapter_dir", "lora_model", "lora_adapter", "lora_path", "adapter_path", "adapter_name_or_path")

_AFTER = [
    *_same("base", *_BASE, where=("infer", "merge")),
    *_same("adapter", *_ADAPTER_NAMES, where=("infer", "merge")),
    *_same("output", "output_dir", "output_path", where=("merge",)),
    *_same("dtype", "torch_dtype", where=("merge",)),
]

ROWS: tuple[Alias, ...] = (*_MODEL, *_DATA, *_LEARNING, *_ADAPTER, *_MACHINE, *_RUN, *_ABSENT, *_AFTER)
"""Every row, grouped as the settings are."""


@cache
def aliases(where: Where = "train") -> dict[tuple[str, str | None], Alias]:
    """The rows for one kind of command, by (name, section family)."""
    return {(row.name, row.section): row for row in ROWS if where in row.where}


def find(name: str, where: Where = "train", family: str | None = None) -> Alias | None:
    """The row for ``name``; inside a section of ``family`` the section's own meaning comes first."""
    rows = aliases(where)
    return rows.get((name, family)) or rows.get((name, None))


def known_names(where: Where = "train", families: Iterable[str | None] = (None,)) -> list[str]:
    """Every foreign name that means something, in these section families."""
    return [name for name, family in aliases(where) if family in families]
