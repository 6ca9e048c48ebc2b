"""Shapes of models from headers and configs, and what is said of folders that hold no model."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.planning_facts import known, write_checkpoint

from qlora_profiles.errors import UserError
from qlora_run.model_facts import discover_targets, known_configs, known_facts, read_model_facts
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo

QWEN3_TINY = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}
"""Heads wider than the hidden size, as in some real models."""

PUBLISHED_PARAMS = {
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen2.5-7B": 7_615_616_512,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "google/gemma-3-1b-it": 999_885_952,
    "google/gemma-3-4b-it": 4_300_079_472,
    "google/gemma-2-9b": 9_241_705_984,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
}


@pytest.mark.parametrize(("name", "params"), PUBLISHED_PARAMS.items())
def test_known_models_have_their_published_size(name: str, params: int) -> None:
    assert known(name).params == params


def test_every_known_model_has_a_shape() -> None:
    for name in known_configs():
        facts = known(name)
        assert facts.max_positions is not None
        assert facts.linears
        assert not facts.exact


def test_headers_give_the_same_shape_as_the_config_and_are_exact(tmp_path: Path) -> None:
    config = known_configs()["Qwen/Qwen3-8B"]
    write_checkpoint(tmp_path / "model", config, tensors_from_config(config, "x"), shards=3)
    read, listed = read_model_facts(str(tmp_path / "model")), known("Qwen/Qwen3-8B")
    assert read.exact
    assert not listed.exact
    assert read.file_bytes is not None
    assert read.file_bytes > 2 * read.params
    for name in (
        "params",
        "layers",
        "vocab_size",
        "other_params",
        "fingerprint",
    ):
        assert getattr(read, name) == getattr(listed, name), name


FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {"head_dim": None},
    "llama": {"head_dim": None, "tie_word_embeddings": False},
    "mistral": {"head_dim": 32, "tie_word_embeddings": False},
    "gemma2": {},
    "gemma3_text": {"layer_types": ["full_attention"] * 3},
    "phi3": {"head_dim": None, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_real_checkpoints_of_each_family(family: str, tmp_path: Path) -> None:
    """transformers writes the checkpoint; every shape and the sum must be what its own model says."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {k: v for k, v in {**QWEN3_TINY, **FAMILIES[family]}.items() if v is not None and k != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    facts = read_model_facts(str(tmp_path))
    assert facts.params == sum(p.numel() for p in model.parameters())
    assert facts.stored_dtype == "float32"
    assert facts.tied_embeddings == bool(values["tie_word_embeddings"])
    assert facts.max_positions == 4096
    assert {group.intermediate_size for group in facts.layers} == {160}
    layer = model.get_decoder().layers[0]
    for shape in discover_targets(facts, ("all-linear",)):
        linear = layer.get_submodule(shape.name)
        assert (linear.out_features, linear.in_features) == (shape.out_features, shape.in_features)
        assert shape.bias == (linear.bias is not None)
    linears = sum(m.weight.numel() for m in layer.modules() if type(m).__name__ == "Linear")
    assert facts.layer_linear_params == 3 * linears
    planned = tensors_from_config(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")), "x")
    assert sum(t.params for t in planned.values()) == facts.params


def test_only_the_language_part_of_a_seeing_model_counts_as_layers(tmp_path: Path) -> None:
    text = {k: v for k, v in QWEN3_TINY.items() if k != "tie_word_embeddings"} | {"model_type": "gemma3_text"}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"num_hidden_layers": 3}}
    tensors = {f"language_model.{name}": t for name, t in tensors_from_config(config, "x").items()}
    seeing = TensorInfo("BF16", (96, 96))
    tensors |= {f"vision_tower.vision_model.encoder.layers.{i}.self_attn.q_proj.weight": seeing for i in range(3)}
    facts = read_model_facts(str(write_checkpoint(tmp_path / "m", config, tensors)))
    assert facts.num_layers == 3
    assert len(facts.linears) == 7
    assert facts.tied_embeddings
    assert facts.other_params >= 3 * 96 * 96


def test_experts_count_but_get_no_adapter(tmp_path: Path) -> None:
    config = {**QWEN3_TINY, "model_type": "mixtral"}
    one: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (4, 64)}
    one |= {f"mlp.experts.{e}.{n}.weight": (160, 64) for e in range(4) for n in ("w1", "w3")}
    one |= {f"mlp.experts.{e}.w2.weight": (64, 160) for e in range(4)}
    one |= {"self_attn.q_proj.weight": (128, 64), "self_attn.o_proj.weight": (64, 128)}
    one |= {f"self_attn.{name}_proj.weight": (64, 64) for name in "kv"}
    one |= {f"{norm}.weight": (64,) for norm in ("input_layernorm", "post_attention_layernorm")}
    tensors = {f"model.layers.{i}.{n}": TensorInfo("BF16", s) for i in range(3) for n, s in one.items()}
    tensors["model.embed_tokens.weight"] = TensorInfo("BF16", (512, 64))
    tensors["model.norm.weight"] = TensorInfo("BF16", (64,))
    facts = read_model_facts(str(write_checkpoint(tmp_path / "m", config, tensors)))
    assert [shape.name for shape in facts.linears] == [f"self_attn.{name}_proj" for name in "koqv"]
    assert facts.layer_linear_params == 3 * (4 * 3 * 160 * 64 + 2 * 128 * 64 + 2 * 64 * 64 + 4 * 64)


def test_a_checkpoint_that_is_quantised_already_is_recognised(tmp_path: Path) -> None:
    packed = {"model.layers.0.mlp.up_proj.weight": TensorInfo("U8", (5120, 1))}
    for entry, name in (
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
    ):
        folder = write_checkpoint(tmp_path / name[-1], QWEN3_TINY | {"quantization_config": entry}, packed)
        facts = read_model_facts(str(folder))
        assert facts.quantised == name
        assert facts.layer_linear_params == 3 * sum(shape.params for shape in facts.linears)


def test_the_fingerprint_follows_the_shape_and_not_the_path(tmp_path: Path) -> None:
    tensors = tensors_from_config(QWEN3_TINY, "x")
    prints = [
        read_model_facts(str(write_checkpoint(tmp_path / "a", QWEN3_TINY, tensors))).fingerprint,
        read_model_facts(str(write_checkpoint(tmp_path / "b", QWEN3_TINY, tensors, shards=2))).fingerprint,
        read_model_facts(str(write_checkpoint(tmp_path / "c", QWEN3_TINY | {"rope_theta": 1}, tensors))).fingerprint,
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "tinymodel", QWEN3_TINY, tensors_from_config(QWEN3_TINY, "x"), shards=2)


def error_of(model: str | Path) -> UserError:
    with pytest.raises(UserError) as caught:
        read_model_facts(str(model))
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_folder_names_the_models_near_it(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model_folder.parent)
    assert (
        str(error_of("./nomodel")) == "--model ./nomodel  no such folder; nearby: ./tinymodel  -> --model ./tinymodel"
    )
    assert error_of("timymodel").fix == "--model tinymodel"
    assert "no such folder" in error_of("some/deep/folder/here").message
    assert read_model_facts("./tinymodel").params == read_model_facts("tinymodel/").params


def test_a_shard_that_is_missing_or_cut_off(model_folder: Path) -> None:
    shard = model_folder / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    assert "cut off" in error_of(model_folder).message
    shard.write_bytes(whole[:20])
    assert "cut off" in error_of(model_folder).message
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert error_of(model_folder).fix == "git lfs pull"
    shard.write_bytes(b"")
    assert "not a safetensors file" in error_of(model_folder).message
    shard.write_bytes(whole[:8] + b"?" * (len(whole) - 8))
    assert "damaged" in error_of(model_folder).message
    shard.unlink()
    assert "1 of 2 weight files are missing" in error_of(model_folder).message


def test_a_folder_without_config_weights_or_tokenizer(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").unlink()
    assert "no tokenizer" in error_of(model_folder).message
    for file in model_folder.glob("*.safetensors*"):
        file.unlink()
    assert "no weights" in error_of(model_folder).message
    (model_folder / "pytorch_model.bin").write_bytes(b"x")
    assert "PyTorch .bin weights only" in error_of(model_folder).message
    (model_folder / "config.json").write_text("{", encoding="utf-8")
    assert "not JSON" in error_of(model_folder).message
    (model_folder / "config.json").unlink()
    assert "no config.json" in error_of(model_folder).message
    assert "a file" in error_of(model_folder / "pytorch_model.bin").message


def test_an_adapter_says_whose_it_is_and_a_parent_where_the_model_lies(model_folder: Path) -> None:
    parent = error_of(model_folder.parent)
    assert parent.fix is not None
    assert parent.fix.endswith("/tinymodel")
    adapter = model_folder.parent / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}', encoding="utf-8")
    assert error_of(adapter).fix == "--model org/base"


def test_weights_that_are_no_language_model(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", QWEN3_TINY, {"conv.weight": TensorInfo("F32", (8, 8))})
    assert "not a language model" in error_of(folder).message
    write_checkpoint(folder, {"model_type": "vit"}, {"conv.weight": TensorInfo("F32", (8, 8))})
    assert "config.json names no num_hidden_layers" in error_of(folder).message


def test_several_weight_files_without_an_index(tmp_path: Path) -> None:
    """transformers would find no weights in such a folder."""
    tensors = tensors_from_config(QWEN3_TINY, "x")
    folder = write_checkpoint(tmp_path / "m", QWEN3_TINY, tensors, shards=2)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"neither model\.safetensors nor .*index\.json beside model-00001-of-00002"):
        read_model_facts(str(folder))


def test_targets_by_name_in_the_layers_order() -> None:
    facts = known("Qwen/Qwen3-8B")
    assert len(discover_targets(facts, ("all-linear",))) == 7
    names = [shape.name for shape in discover_targets(facts, ("v_proj", "self_attn.q_proj"))]
    assert names == ["self_attn.q_proj", "self_attn.v_proj"]
    with pytest.raises(UserError, match="no layer qproj; did you mean q_proj") as caught:
        discover_targets(facts, ("qproj",))
    assert "down_proj" in caught.value.message


def test_an_unknown_architecture_cannot_be_told_from_its_config() -> None:
    with pytest.raises(UserError, match="mamba2"):
        tensors_from_config({**QWEN3_TINY, "model_type": "mamba2"}, "org/x")
    assert known_facts("org/never-heard-of") is None
