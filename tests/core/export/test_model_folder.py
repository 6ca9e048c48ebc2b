"""Settings and weights of a whole model are those that its base was published with, but for what must differ."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import save_tiny_model, save_tokenizer, tiny_model

from qlora_core.export.model_config import for_older, write_config, write_generation_config
from qlora_core.export.model_folder import Base, save_model

OLD = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "torch_dtype": "bfloat16",
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "eos_token_id": 2,
    "an_unknown_key": [1],
}


def written(folder: Path, published: dict[str, Any], stop_ids: list[int], dtype: str = "bfloat16") -> dict[str, Any]:
    write_config(folder, published, stop_ids, dtype)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return config


@pytest.mark.parametrize(
    ("changes", "stop_ids", "differs"),
    [
        ({}, [2, 5], {}),
        ({}, [7, 2], {"eos_token_id": 7}),
        ({"eos_token_id": [2, 3]}, [7, 2], {"eos_token_id": [7, 2, 3]}),
        ({"eos_token_id": [2, 3]}, [2, 9], {}),
        ({"quantization_config": {"load_in_4bit": True}}, [2], {"quantization_config": None}),
        ({"torch_dtype": "float16"}, [2], {"torch_dtype": "bfloat16"}),
    ],
)
def test_settings_are_the_published_ones(
    tmp_path: Path, changes: dict[str, Any], stop_ids: list[int], differs: dict[str, Any]
) -> None:
    published = OLD | changes
    wanted = {key: value for key, value in (published | differs).items() if value is not None}
    assert written(tmp_path, published, stop_ids) == wanted


def test_a_part_that_reads_text_ends_and_is_stored_as_trained(tmp_path: Path) -> None:
    text = {"torch_dtype": "bfloat16", "eos_token_id": 2, "rope_theta": 5e5}
    config = written(tmp_path, {"model_type": "other", "text_config": text}, [7, 2], "float32")
    assert config["text_config"] == text | {"torch_dtype": "float32", "eos_token_id": 7}
    assert "eos_token_id" not in config


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
KINDS = {
    "full_attention": {"rope_theta": 3e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 2e4, "rope_type": "default"},
}


@pytest.mark.parametrize(
    ("family", "rope", "older"),
    [
        ("qwen3", {"rope_theta": 1e6, "rope_type": "default"}, {"rope_theta": 1e6}),
        (
            "llama",
            LLAMA3 | {"rope_theta": 5e5, "original_max_position_embeddings": 64},
            {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 64}},
        ),
        (
            "gemma3_text",
            KINDS,
            {
                "rope_theta": 3e6,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "rope_local_base_freq": 2e4,
            },
        ),
    ],
)
def test_a_rope_base_of_the_new_form_is_written_in_the_old_one_too(
    family: str, rope: dict[str, Any], older: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    tiny_model(family, rope_parameters=rope).config.save_pretrained(tmp_path)
    published = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert not set(older) & set(published)
    both = for_older(published)
    assert {key: both[key] for key in older} == older
    assert {key: both[key] for key in published} == published
    read_before = AutoConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(both), encoding="utf-8")
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == read_before.rope_parameters


def test_nothing_is_added_where_it_would_be_read_otherwise() -> None:
    rope = {"full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}}
    config = {"model_type": "gemma4_text", "layer_types": ["full_attention"], "rope_parameters": rope}
    assert for_older(config) == config


def test_generation_ends_at_the_trained_token_first_and_samples_as_published(tmp_path: Path) -> None:
    odd = {"do_sample": False, "temperature": 0.6, "eos_token_id": [1, 4], "bos_token_id": 0}
    write_generation_config(tmp_path, odd, (3, 1), None)
    settings = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert settings == odd | {"eos_token_id": [3, 1, 4], "pad_token_id": 3}
    write_generation_config(tmp_path, {"eos_token_id": 3, "pad_token_id": 0}, (3,), 5)
    settings = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert settings == {"eos_token_id": [3], "pad_token_id": 0}


def test_parts_of_a_base_that_nobody_loaded_are_in_the_model_too(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = save_tiny_model(tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    stored |= {"model.visual.weight": torch.arange(6.0), "mtp.layers.0.weight": torch.ones(2, 3).bfloat16()}
    save_file(stored, base / "model.safetensors", metadata={"format": "pt"})
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}', encoding="utf-8")
    model = AutoModelForCausalLM.from_pretrained(str(base))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    folder = tmp_path / "model"
    save_model(model, Base(str(base), {}), folder, base, (2,))
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))["weight_map"]
    assert set(index) == set(stored)
    found: dict[str, torch.Tensor] = {}
    for name in set(index.values()):
        found |= load_file(folder / name)
    changed = [name for name in stored if not torch.equal(found[name], stored[name])]
    assert changed == ["lm_head.weight"]
    again = AutoModelForCausalLM.from_pretrained(str(folder))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    published = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in published} == published


def test_a_base_published_in_4_bits_is_merged_into_what_the_adapter_was_trained_on(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from support.adapted import difference
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from qlora_core.export.artifacts import BaseRecord
    from qlora_core.export.merge import merge
    from qlora_profiles import codec

    whole, base = save_tiny_model(tmp_path / "tiny", "llama"), tmp_path / "tiny-bnb-4bit"
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    AutoModelForCausalLM.from_pretrained(str(whole), quantization_config=four_bits).save_pretrained(str(base))
    save_tokenizer(base)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    adapter = tmp_path / "adapter"
    get_peft_model(tiny_model("llama"), lora).save_pretrained(str(adapter))
    save_tokenizer(adapter)
    shape: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_layers": 3, "method": "qlora-4"}
    codec.save(
        BaseRecord(model=str(base), revision=None, fingerprint="f", stop_ids=(2,), **shape), adapter / "base.json"
    )
    merged = {str(b): merge(adapter, tmp_path / f"merged-{b.name}", str(b)) for b in (base, whole)}
    trained = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(base)), str(adapter))
    plain = {name: AutoModelForCausalLM.from_pretrained(str(folder)) for name, folder in merged.items()}
    near, far = (difference(trained, plain[str(b)]) for b in (base, whole))
    assert near < 0.02  # bitsandbytes computes in bfloat16 on a CPU
    assert far > 3 * near
    assert "quantization_config" not in json.loads((merged[str(base)] / "config.json").read_text(encoding="utf-8"))
