from typing import Any

import pytest

from qlora_profiles.alias import Alias, meaning, word_of
from qlora_profiles.alias_parts import PARTS, put_together
from qlora_profiles.aliases import ROWS, SECTIONS, find
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Given, Written
from qlora_profiles.registry import lookup, parse, settings

TRAIN_ROWS = [row for row in ROWS if "train" in row.where]

# Flags and keys of scripts and config files that people have: each must be a setting or have a row.
FLAGS = [
    "repo_id",
    "local_dir",
    "trust_remote_code",
    "use_unsloth",
    "use_qlora",
    "data_path",
    "max_samples",
    "model_max_length",
    "output_dir",
    "seed",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "num_train_epochs",
    "max_steps",
    "warmup_ratio",
    "lr_scheduler_type",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "gradient_checkpointing",
    "merge_and_save",
    "fp16",
    "optim",
    "dataloader_pin_memory",
    "dataloader_num_workers",
    "use_lora",
    "quantization_bit",
    "lora_target_modules",
    "config_file",
    "model_path",
    "epochs",
    "batch_size",
    "output_path",
    "input",
    "output",
    "format",
    "instruction_col",
    "num_samples",
]
KEYS = [
    "model_name_or_path",
    "dataset_path",
    "output_dir",
    "resume_from_checkpoint",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "cutoff_len",
    "bf16",
    "gradient_checkpointing",
    "group_by_length",
    "flash_attention_2",
    "dataloader_num_workers",
    "use_lora",
    "use_qlora",
    "quantization_bit",
    "lora_r",
    "max_length",
]
SECTION_KEYS = {
    "quantization_config": [
        "load_in_4bit",
        "bnb_4bit_quant_type",
        "bnb_4bit_compute_dtype",
        "bnb_4bit_use_double_quant",
    ],
    "lora_config": ["r", "lora_alpha", "lora_dropout", "target_modules", "bias"],
    "training_args": [
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "learning_rate",
        "logging_steps",
        "save_steps",
        "gradient_checkpointing",
        "dataloader_pin_memory",
    ],
}
AFTER_NAMES = {
    "infer": ["base_dir", "adapter_dir", "base_model", "lora_model"],
    "merge": ["base_model", "lora_adapter", "output_dir"],
}


@pytest.mark.parametrize("name", sorted({*FLAGS, *KEYS}))
def test_names_that_scripts_use_are_known(name: str) -> None:
    assert name in settings() or find(name) is not None


@pytest.mark.parametrize(("section", "name"), [(s, name) for s, names in SECTION_KEYS.items() for name in names])
def test_keys_inside_sections_are_known(section: str, name: str) -> None:
    assert name in settings() or find(name, "train", SECTIONS[section]) is not None


@pytest.mark.parametrize(("where", "name"), [(w, name) for w, names in AFTER_NAMES.items() for name in names])
def test_names_of_inference_and_merge_scripts_are_known(where: Any, name: str) -> None:
    assert find(name, where) is not None


@pytest.mark.parametrize("row", TRAIN_ROWS, ids=lambda row: row.name)
def test_every_row_leads_to_settings_and_all_its_words_are_values_of_theirs(row: Alias) -> None:
    assert all(target in settings() or target == "config" for target in row.to)
    assert row.part is None or PARTS[row.part] == row.to[0]
    for values in row.words.values():
        for key, value in values.items():
            if key not in PARTS:
                assert key in row.to
                parse(lookup(key), value)


def test_no_name_is_there_twice_and_none_hides_a_setting() -> None:
    seen = [(row.name, row.section, where) for row in ROWS for where in row.where]
    assert len(seen) == len(set(seen))
    assert [row.name for row in TRAIN_ROWS if row.name in settings() and row.name not in row.to] == []


def test_whatever_sets_nothing_says_why() -> None:
    assert [row.name for row in TRAIN_ROWS if not row.to and not row.note] == []


@pytest.mark.parametrize(
    ("name", "raw", "meant"),
    [
        ("repo_id", "Qwen/Qwen3-8B-Base", {"model": "Qwen/Qwen3-8B-Base"}),
        ("max_steps", -1, {"max_steps": None}),
        ("max_steps", "-1", {"max_steps": None}),
        ("max_steps", "100", {"max_steps": "100"}),
        ("use_unsloth", "True", {"backend": "unsloth"}),
        ("use_unsloth", False, {"backend": "peft"}),
        ("use_qlora", "1", {"use_qlora": True}),
        ("quantization_bit", 8, {"bits": 8}),
        ("quantization_bit", None, {}),
        ("lora_target_modules", None, {"target_modules": ("all-linear",)}),
        ("lora_target_modules", "q_proj,k_proj", {"target_modules": "q_proj,k_proj"}),
        ("target_modules", ["q_proj"], {"target_modules": ["q_proj"]}),
        ("gradient_checkpointing", True, {}),
        ("gradient_checkpointing", "false", {"layers_recomputed": 0}),
        ("fp16", "True", {"compute_dtype": "float16"}),
        ("fp16", False, {}),
        ("bf16", True, {"compute_dtype": "bfloat16"}),
        ("optim", "adamw_torch", {"optimizer": "adamw", "optimizer_kernel": "plain"}),
        ("optim", "adamw_torch_fused", {"optimizer": "adamw", "optimizer_kernel": "fused"}),
        ("optim", "adamw_hf", {"optimizer": "adamw", "optimizer_kernel": "plain"}),
        ("optim", "paged_adamw_32bit", {"optimizer": "adamw", "optimizer_kernel": "paged"}),
        ("optim", "adamw_8bit", {"optimizer": "adamw-8bit"}),
        ("optim", "adamw_bnb_8bit", {"optimizer": "adamw-8bit"}),
        ("optim", "paged_adamw_8bit", {"optimizer": "adamw-8bit", "optimizer_kernel": "paged"}),
        ("optimizer", "adamw", {"optimizer": "adamw"}),
        ("resume_from_checkpoint", True, {"resume": "auto"}),
        ("resume_from_checkpoint", "false", {"resume": "never"}),
        ("resume_from_checkpoint", "./out/checkpoint-500", {"resume": "./out/checkpoint-500"}),
        ("group_by_length", True, {}),
        ("attn_implementation", "flash_attention_2", {"attention": "flash"}),
        ("attn_implementation", "eager", {}),
        ("flash_attention_2", True, {"attention": "flash"}),
        ("vram", "12GiB", {"vram_budget_bytes": 12 * 2**30}),
        ("vram_budget_bytes", 8 * 2**30, {"vram_budget_bytes": 8 * 2**30}),
        ("vram_budget_bytes", "auto", {"vram_budget_bytes": None}),
        ("instruction_col", "question_text", {"field": "instruction=question_text"}),
        ("format", "csv", {"data_format": "csv"}),
        ("num_samples", 50, {"max_samples": 50}),
        ("report_to", "none", {"report_to": ()}),
        ("report_to", [], {"report_to": ()}),
        ("report_to", "wandb", {"report_to": "wandb"}),
        ("bnb_4bit_compute_dtype", "torch.bfloat16", {"compute_dtype": "bfloat16"}),
        ("use_dora", False, {}),
        ("save_strategy", "epoch", {}),
    ],
)
def test_what_a_value_means(name: str, raw: Any, meant: dict[str, Any]) -> None:
    row = find(name)
    assert row is not None
    assert meaning(row, raw) == meant


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("optim", "sgd", "one of adamw_torch, adamw_torch_fused"),
        ("quantization_bit", 3, "one of 4, 8"),
        ("use_unsloth", "maybe", "one of true, false"),
        ("use_dora", True, "one of false"),
        ("stage", "dpo", "one of sft"),
        ("attn_implementation", "flash_attention_9", "flash_attention_2"),
        ("batch_size", "0", "at least 1"),
        ("batch_size", True, "an integer"),
        ("gradient_accumulation_steps", "4.5", "an integer"),
        ("vram", "12", "no unit; write it like 12GiB"),
        ("vram", "much", "is no size"),
        ("vram", "9" * 400, "is no size"),
        ("format", "sample", "qlora-run demo"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_what_can(name: str, raw: Any, told: str) -> None:
    row = find(name)
    assert row is not None
    with pytest.raises(UserError) as caught:
        meaning(row, raw)
    assert told in str(caught.value)


def test_names_of_a_section_mean_nothing_outside_it() -> None:
    inside = find("alpha", "train", "lora")
    assert inside is not None
    assert inside.to == ("lora_alpha",)
    assert find("alpha") is None
    assert find("alpha", "train", "training") is None


@pytest.mark.parametrize(
    ("raw", "word"), [(True, "true"), (None, "null"), ("None", "null"), ("", "null"), (-1, "-1"), (" Yes ", "yes")]
)
def test_words(raw: Any, word: str) -> None:
    assert word_of(raw) == word


def _part(name: str, value: Any, label: str = "") -> Given:
    return Given(value=value, source="cli", written=Written(name=name, raw=value, label=label or name))


def _parts(**values: Any) -> dict[str, Given]:
    return {key: _part(key, value) for key, value in values.items()}


@pytest.mark.parametrize(
    ("parts", "method"),
    [
        ({"use_qlora": True}, "qlora-4"),
        ({"use_qlora": True, "bits": 8}, "qlora-8"),
        ({"use_qlora": True, "bits": 4, "use_lora": True}, "qlora-4"),
        ({"use_qlora": True, "load_in_8bit": True}, "qlora-8"),
        ({"use_qlora": True, "use_lora": False}, "qlora-4"),
        ({"use_qlora": False}, "lora"),
        ({"use_qlora": False, "bits": 4}, "lora"),
        ({"use_qlora": False, "use_lora": False}, "full"),
        ({"use_lora": True}, "lora"),
        ({"use_lora": False}, "full"),
        ({"use_lora": True, "bits": 4}, "qlora-4"),
        ({"bits": 8}, "qlora-8"),
        ({"load_in_4bit": True}, "qlora-4"),
        ({"load_in_4bit": False, "load_in_8bit": True}, "qlora-8"),
        ({"load_in_4bit": False}, "lora"),
        ({"load_in_4bit": True, "bits": 4}, "qlora-4"),
    ],
)
def test_the_method_that_switches_choose_together(parts: dict[str, Any], method: str) -> None:
    assert put_together("method", _parts(**parts), "cli").value == method


@pytest.mark.parametrize(
    "parts",
    [
        {"load_in_4bit": True, "load_in_8bit": True},
        {"use_qlora": False, "load_in_4bit": True},
        {"bits": 4, "load_in_8bit": True},
        {"use_lora": False, "bits": 4},
    ],
)
def test_switches_that_contradict_each_other_are_refused_by_name(parts: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        put_together("method", _parts(**parts), "cli")
    assert any(name in str(caught.value) for name in parts)
    assert caught.value.fix == "remove one of them"


def test_bits_that_count_for_nothing_are_told() -> None:
    assert "bits 4 counts only" in put_together("method", _parts(use_qlora=False, bits=4), "cli").note


@pytest.mark.parametrize(
    ("parts", "rows", "reason"),
    [
        ({"batch": 1, "accumulation": 16}, 16, "your batch 1 x accumulation 16"),
        ({"batch": 2}, 32, "your batch 2 x accumulation 16 (accumulation 16 assumed)"),
        ({"accumulation": 8}, 8, "your batch 1 x accumulation 8 (batch 1 assumed)"),
    ],
)
def test_batch_times_accumulation_is_examples_per_step(parts: dict[str, Any], rows: int, reason: str) -> None:
    whole = put_together("examples_per_step", _parts(**parts), "cli")
    assert (whole.value, whole.reason) == (rows, reason)
    assert bool(whole.note) == (len(parts) == 1)


def test_scripts_with_batch_size_accumulate_four_times() -> None:
    part = _part("batch_size", 2, label="--batch_size")
    whole = put_together("examples_per_step", {"batch": part}, "cli")
    assert whole.value == 8
    assert whole.note == "batch_size 2 alone: read with accumulation 4, so 8 examples per step"
