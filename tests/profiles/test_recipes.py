"""The prepared recipes: every value as their sources tell it, well-formed, and refused with the mistake in them."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len

from qlora_profiles.errors import UserError
from qlora_profiles.own_files import own_folder
from qlora_profiles.recipe_file import NamedRecipe, read_recipe, write_recipe
from qlora_profiles.recipes import load_recipe, recipe_names, save_recipe
from qlora_profiles.registry import settings

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SEVEN = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
_SMALL = {
    "model": "Qwen/Qwen2.5-0.5B-Instruct",
    "data": ("data/store_xhs_sft_samples.jsonl",),
    "val_size": 0.0,
}
_SMALL_ADAPTER = _SMALL | {"lora_r": 64, "lora_alpha": 16.0, "lora_dropout": 0.1, "target_modules": SEVEN}
_CHAT = {
    "model": "Qwen/Qwen3-4B",
    "method": "lora",
    "data": ("./sft/data",),
    "max_length": 4096,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 8,
    "epochs": 3.0,
    "learning_rate": 5e-5,
    "lora_r": 64,
    "lora_alpha": 128.0,
    "lora_dropout": 0.05,
    "target_modules": ("all-linear",),
    "merge": False,
    "val_size": 0.0,
}
_CHAT_EXECUTION = {"compute_dtype": "bfloat16", "attention": "flash"}

SETTINGS: dict[str, dict[str, Any]] = {
    "gemma3-4b-belle": {
        "model": "google/gemma-3-4b-it",
        "method": "qlora-4",
        "quant_type": "nf4",
        "double_quant": True,
        "data": ("BelleGroup/train_0.5M_CN",),
        "max_samples": 2000,
        "batch_size": 1,
        "gradient_accumulation_steps": 4,
        "epochs": 3.0,
        "learning_rate": 2e-4,
        "lr_scheduler": "constant",
        "warmup_ratio": 0.03,
        "weight_decay": 0.001,
        "max_grad_norm": 0.3,
        "optimizer": "adamw",
        "lora_r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.1,
        "target_modules": SEVEN,
        "output": "output",
        "val_size": 0.0,
    },
    "qwen2.5-0.5b-full": _SMALL | {"method": "full", "learning_rate": 5e-5, "output": "output_qwen_full"},
    "qwen2.5-0.5b-lora": _SMALL_ADAPTER | {"method": "lora", "learning_rate": 1e-4, "output": "output_qwen_lora"},
    "qwen2.5-0.5b-qlora": _SMALL_ADAPTER | {"method": "qlora-4", "learning_rate": 2e-4, "output": "output_qwen_qlora"},
    "qwen2.5-0.5b-qlora-8bit": _SMALL_ADAPTER
    | {"method": "qlora-8", "learning_rate": 2e-4, "output": "output_qwen_qlora_8bit"},
    "qwen2.5-7b-novel": {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "method": "qlora-4",
        "quant_type": "nf4",
        "double_quant": True,
        "data": ("dataset/novel_finetuning_dataset.jsonl",),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "epochs": 3.0,
        "learning_rate": 2e-4,
        "lora_r": 32,
        "lora_alpha": 64.0,
        "lora_dropout": 0.1,
        "target_modules": ATTENTION,
        "lora_bias": "none",
        "output": "output/qwen_qlora_model",
        "resume": "auto",
        "logging_steps": 10,
        "save_steps": 100,
        "merge": True,
        "val_size": 0.0,
    },
    "qwen3-4b-financial": _CHAT | {"output": "sft/outputs/training/financial"},
    "qwen3-4b-lora": _CHAT | {"output": "sft/outputs/training/default"},
    "qwen3-4b-test": _CHAT | {"output": "sft/outputs/training/test_run", "data": ("./sft/data/sample_data.jsonl",)},
    "qwen3-8b-qlora": {
        "model": "Qwen/Qwen3-8B-Base",
        "local_dir": "qwen3-8b-base",
        "method": "qlora-4",
        "data": ("training_data.jsonl",),
        "max_samples": None,
        "max_length": 2048,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 16,
        "epochs": 3.0,
        "max_steps": None,
        "learning_rate": 2e-4,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.05,
        "weight_decay": 0.0,
        "optimizer": "adamw",
        "seed": 42,
        "lora_r": 16,
        "lora_alpha": 32.0,
        "lora_dropout": 0.05,
        "target_modules": SEVEN,
        "output": "finetune/models/qwen3-8b-qlora",
        "logging_steps": 20,
        "save_steps": 200,
        "save_total_limit": 2,
        "merge": True,
        "val_size": 0.0,
    },
}
"""Written from the sources, not from the files."""
EXECUTION: dict[str, dict[str, Any]] = {
    "gemma3-4b-belle": {"compute_dtype": "bfloat16", "optimizer_kernel": "paged"},
    "qwen2.5-7b-novel": {"compute_dtype": "bfloat16"},
    "qwen3-4b-financial": _CHAT_EXECUTION,
    "qwen3-4b-lora": _CHAT_EXECUTION,
    "qwen3-4b-test": _CHAT_EXECUTION,
    "qwen3-8b-qlora": {
        "backend": "peft",
        "compute_dtype": "float16",
        "optimizer_kernel": "fused",
        "pin_memory": False,
        "workers": 0,
    },
}
LEFT_OUT = {
    "gemma3-4b-belle": {"prompt_form"},
    "qwen2.5-7b-novel": {"system"},
    "qwen3-4b-financial": {"gradient_checkpointing", "group_by_length"},
    "qwen3-4b-lora": {"gradient_checkpointing", "group_by_length", "merged_models"},
    "qwen3-4b-test": {"gradient_checkpointing", "group_by_length", "num_samples"},
    "qwen3-8b-qlora": {"trust_remote_code", "gradient_checkpointing", "use_unsloth"},
}


def test_the_recipes_by_name() -> None:
    assert recipe_names() == tuple(sorted(SETTINGS))


@pytest.mark.parametrize("name", SETTINGS)
def test_each_recipe_holds_every_value_that_its_source_tells(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.settings == SETTINGS[name]
    assert recipe.execution == EXECUTION.get(name, {})
    assert recipe.left_out.keys() == LEFT_OUT.get(name, set())


@pytest.mark.parametrize("name", SETTINGS)
def test_each_recipe_says_what_it_is_in_two_languages(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about.isascii()
    assert cell_len(f"  {recipe.about}") <= 80
    assert cell_len(f"  {recipe.about_zh}") <= 80
    assert any("\u4e00" <= letter <= "\u9fff" for letter in recipe.about_zh)
    recipe.about_zh.encode("gbk")
    assert recipe.source.isascii()
    assert "/" not in recipe.source


def test_a_recipe_says_nothing_of_the_execution() -> None:
    for name in recipe_names():
        scopes = {settings()[key].scope for key in load_recipe(name).settings if key in settings()}
        assert scopes == {"recipe", "run"}
        assert {settings()[key].scope for key in load_recipe(name).execution} <= {"execution"}


def test_an_unknown_recipe_names_the_nearest_and_a_profile_where_it_belongs() -> None:
    with pytest.raises(UserError, match="unknown recipe gema-4b-belle; did you mean gemma3-4b-belle") as caught:
        load_recipe("gema-4b-belle")
    assert "qwen3-8b-qlora" in str(caught.value.fix)
    with pytest.raises(UserError, match="windows-12gb is a profile") as caught:
        load_recipe("windows-12gb")
    assert caught.value.fix == "--profile windows-12gb"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about: x\nsettings: {lora_ra: 8}", "unknown setting lora_ra; did you mean lora_r"),
        ("about: x\nsetings: {lora_r: 8}", "unknown key setings; did you mean settings"),
        ("about: x\nsettings: {lora_r: many}", "lora_r: 'many' is not allowed"),
        ("about: x\nsettings: {batch_size: 0}", "batch_size: 0 is not allowed; an integer, at least 1"),
        ("about: x\nsettings: {batch_size: 2, examples_per_step: 8}", "examples_per_step contradicts batch_size"),
        ("about: x\nsettings: {workers: 2}", "workers says how a machine computes"),
        ("about: x\nsettings: {trust_remote_code: true}", "nobody but you trusts"),
        ("about: x\nsettings: {}\nexecution: {workrs: 2}", "unknown setting workrs; did you mean workers"),
        ("about: x\nsettings: {}\nleft_out: {a: 1}", "left_out"),
        ("settings: {}", "about"),
        ("- a list", "array"),
        ("a: b: c", "not YAML"),
        ("about: &a x\nsettings: {}\nsource: *a", "anchors and aliases"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_recipe(text, "mine")
    assert caught.value.message.startswith("recipe mine: ")


@pytest.mark.parametrize("name", ["gemma3-4b-belle", "qwen3-8b-qlora"])
def test_what_is_written_is_read_back(name: str) -> None:
    recipe = load_recipe(name)
    assert read_recipe(write_recipe(recipe), name) == recipe


def test_own_recipes_lie_beside_own_profiles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_RUN_CONFIG", str(tmp_path / "设置"))
    mine = NamedRecipe(name="mine", about="for the 写作 model", settings={"lora_r": 64, "data": ("a.jsonl",)})
    assert save_recipe(mine) == own_folder("recipe") / "mine.yaml" == tmp_path / "设置" / "recipes" / "mine.yaml"
    assert load_recipe("mine") == mine
    with pytest.raises(UserError, match="there is one already"):
        save_recipe(mine)
    with pytest.raises(UserError, match="comes with the program"):
        save_recipe(msgspec.structs.replace(mine, name="qwen3-8b-qlora"), replace=True)
