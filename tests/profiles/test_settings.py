import math
from typing import Any

import msgspec
import pytest

from qlora_profiles.errors import UserError
from qlora_profiles.registry import Setting, allowed, flag, lookup, parse, settings
from qlora_profiles.settings import SCOPES, Execution, Recipe

ALL = list(settings().values())
IDS = list(settings())


def test_every_field_of_the_three_structs_is_a_setting_and_names_are_unique() -> None:
    fields = [name for struct in SCOPES.values() for name in struct.__struct_fields__]
    assert sorted(fields) == sorted(settings())
    assert len(fields) == len(set(fields))


@pytest.mark.parametrize("setting", ALL, ids=IDS)
def test_every_setting_explains_itself_in_ascii(setting: Setting) -> None:
    assert setting.doc.help
    assert setting.doc.group
    assert (setting.doc.help + setting.doc.unit + allowed(setting)).isascii()
    assert flag(setting) == "--" + setting.name.replace("_", "-")


@pytest.mark.parametrize("setting", [s for s in ALL if not s.tuned], ids=lambda s: s.name)
def test_every_default_is_a_value_that_may_be_given(setting: Setting) -> None:
    assert parse(setting, setting.default) == setting.default


@pytest.mark.parametrize("setting", [s for s in ALL if s.choices], ids=lambda s: s.name)
def test_every_choice_is_read_in_any_case(setting: Setting) -> None:
    assert [parse(setting, word.upper()) for word in setting.choices] == list(setting.choices)


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("learning_rate", "2e-4", 2e-4),
        ("learning_rate", "5.0e-5", 5e-5),
        ("learning_rate", " 1E-4 ", 1e-4),
        ("val_size", ".5", 0.5),
        ("val_size", "200", 200.0),
        ("epochs", 3, 3.0),
        ("lora_r", "16", 16),
        ("lora_r", " 16 ", 16),
        ("lora_r", 16.0, 16),
        ("lora_r", "16.0", 16),
        ("max_samples", "5", 5),
        ("max_samples", "None", None),
        ("max_samples", None, None),
        ("max_steps", "none", None),
        ("max_length", "auto", None),
        ("method", "auto", None),
        ("data_format", "auto", "auto"),
        ("resume", "auto", "auto"),
        ("lora_bias", "none", "none"),
        ("merge", "Yes", True),
        ("merge", "off", False),
        ("merge", 1, True),
        ("revision", 1.5, "1.5"),
        ("target_modules", "q_proj, v_proj,", ("q_proj", "v_proj")),
        ("target_modules", ["q_proj", "v_proj"], ("q_proj", "v_proj")),
        ("sample_prompts", "Hello, you", ("Hello, you",)),
        ("output", "D:\\runs\\a", "D:\\runs\\a"),
    ],
)
def test_values_are_read_as_people_write_them(name: str, raw: Any, value: Any) -> None:
    read = parse(lookup(name), raw)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "raw", "told"),
    [
        ("epochs", "0", "above 0"),
        ("epochs", "three", "a number"),
        ("epochs", True, "a number"),
        ("learning_rate", "nan", "a number"),
        ("learning_rate", "inf", "a number"),
        ("learning_rate", math.inf, "a number"),
        ("learning_rate", "1e999", "a number"),
        ("warmup_ratio", "1", "below 1"),
        ("lora_dropout", "-0.1", "at least 0"),
        ("lora_r", "16.5", "an integer"),
        ("lora_r", 0, "at least 1"),
        ("lora_r", None, "an integer"),
        ("max_samples", 0, "at least 1"),
        ("max_steps", -1, "at least 1"),
        ("warmup_steps", -1, "at least 0"),
        ("cpu_threads", "0", "at least 1"),
        ("vram_budget_bytes", 0, "at least 1"),
        ("merge", "ja", "true or false"),
        ("method", "qlora", "qlora-4, qlora-8, lora, full or auto"),
        ("model", True, "text"),
        ("model", ["a"], "text"),
        ("target_modules", ["q", 1], "a list"),
        ("target_modules", None, "a list"),
        ("field", {"a": "b"}, "a list"),
    ],
)
def test_a_wrong_value_is_told_with_the_name_the_value_and_what_is_allowed(name: str, raw: Any, told: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(lookup(name), raw)
    assert str(caught.value).startswith(f"{name}: {raw!r} is not allowed; ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown setting lerning_rate; did you mean learning_rate"):
        lookup("lerning_rate")
    assert lookup("learning-rate").name == "learning_rate"


def test_bounded_settings_that_may_be_unset_survive_the_whole_struct() -> None:
    recipe = {"model": "m", "method": "lora", "max_length": 8, "max_samples": 3, "max_steps": None}
    assert msgspec.convert(recipe, Recipe).max_samples == 3
    with pytest.raises(msgspec.ValidationError, match="max_samples"):
        msgspec.convert(recipe | {"max_samples": 0}, Recipe)
    with pytest.raises(msgspec.ValidationError, match="cpu_threads"):
        msgspec.convert(dict.fromkeys(Execution.__struct_fields__) | _execution(), Execution)


def _execution() -> dict[str, Any]:
    return {
        "devices": [0],
        "device": "cpu",
        "backend": "peft",
        "compute_dtype": "float32",
        "vram_budget_bytes": None,
        "token_budget": 1,
        "layers_recomputed": 0,
        "layers_dequantized": 0,
        "attention": "sdpa",
        "loss_kernel": "chunked",
        "loss_chunk_tokens": 1,
        "optimizer_kernel": "plain",
        "adapter_kernel": "plain",
        "dequantize_kernel": "bitsandbytes",
        "layer_kernels": "plain",
        "cuda_graphs": False,
        "workers": 0,
        "dataset_workers": 0,
        "pin_memory": False,
        "expandable_segments": False,
        "offload_activations": False,
        "rematerialize_activations": False,
        "cpu_threads": 0,
    }
