"""Checkpoints whose weights are not those of their config: refused from headers, in one line that names a weight."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from support.planning_facts import write_checkpoint, write_safetensors

from qlora_profiles.errors import UserError
from qlora_run.model_facts import read_model_facts
from qlora_run.model_facts.completeness import check_complete
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
UNLISTED = CONFIG | {"model_type": "a_new_one"}
Tensors = dict[str, TensorInfo]
NORM = "model.layers.2.self_attn.q_norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def whole() -> Tensors:
    return tensors_from_config(CONFIG, "x")


def _renamed(change: Callable[[str], str]) -> Tensors:
    return {change(name): tensor for name, tensor in whole().items()}


def _without(*parts: str) -> Tensors:
    return {name: tensor for name, tensor in whole().items() if not any(part in name for part in parts)}


def _with(name: str, dtype: str = "BF16", shape: tuple[int, ...] = (160, 64)) -> Tensors:
    return whole() | {name: TensorInfo(dtype, shape)}


WRONG: dict[str, tuple[Tensors, str]] = {
    "compiled": (_renamed(lambda n: f"_orig_mod.{n}"), r"compiled model.*_orig_mod\.model\."),
    "compiled layers": (_renamed(lambda n: n.replace("mlp.", "_orig_mod.mlp.")), "compiled model"),
    "parallel": (_renamed(lambda n: f"module.{n}"), r"data-parallel.*module\.model"),
    "sharded": (_renamed(lambda n: f"_fsdp_wrapped_module.{n}"), "FSDP"),
    "lightning": (_renamed(lambda n: f"_forward_module.{n}"), "Fabric"),
    "a part": (_renamed(lambda n: f"model.{n}"), r"part of another.*model\.model\."),
    "student": (_renamed(lambda n: f"student.{n}"), "part of another"),
    "adapter": (_renamed(lambda n: f"base_model.model.{n}"), "PEFT's wrapper"),
    "unmerged": (_with(f"{UP.removesuffix('.weight')}.lora_A.default.weight", shape=(8, 64)), "adapter on, not merged"),
    "base layer": (_renamed(lambda n: n.replace("_proj.", "_proj.base_layer.")), "adapter on, not merged"),
    "a layer": (_without("layers.2."), r"1 of 4 layers .*model\.layers\.2\)"),
    "the last": (_without("layers.3."), r"1 of 4 layers .*model\.layers\.3\)"),
    "a layer more": (_with("model.layers.4.mlp.up_proj.weight"), "hold 5 layers, its config.json says .* 4"),
    "a norm": (_without(NORM), rf"{NORM} is missing"),
    "all of a norm": (_without("k_norm"), r"model\.layers\.0\.self_attn\.k_norm\.weight is missing"),
    "final norm": (_without("model.norm"), r"model\.norm\.weight is missing"),
    "head": (_without("lm_head"), r"lm_head\.weight is missing.*tie_word_embeddings false"),
    "narrow": (_with(UP, shape=(80, 64)), rf"{UP} is 80 x 64 in its files, 160 x 64 by"),
    "vocabulary": (_with("model.embed_tokens.weight", shape=(400, 64)), "is 400 x 64 in its files, 512 x 64 by"),
    "empty": (_with(UP, shape=(0, 64)), rf"{UP} is empty \(0 x 64\)"),
    "integers": (_with(UP, dtype="I64"), rf"{UP} is stored as I64"),
    "eight bits": (_with(UP, dtype="F8_E4M3"), rf"{UP} is stored as F8_E4M3, .* no quantisation"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_of_another_kind_are_refused_by_name(case: str) -> None:
    tensors, said = WRONG[case]
    with pytest.raises(UserError, match=said):
        check_complete("m", CONFIG, tensors)


@pytest.mark.parametrize("case", ["compiled", "a layer", "a layer more", "a norm", "empty", "integers"])
def test_a_family_that_is_not_listed_lacks_nothing_that_its_layers_show(case: str) -> None:
    with pytest.raises(UserError):
        check_complete("m", UNLISTED, WRONG[case][0])


def test_what_a_model_may_have_besides_is_not_refused() -> None:
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": TensorInfo("F32", (8,)),
        "mtp.layers.0.mlp.up_proj.weight": TensorInfo("BF16", (160, 64)),
        "vision_tower.layers.0.mlp.fc1.weight": TensorInfo("I8", (0, 64)),
        "score.weight": TensorInfo("BF16", (2, 64)),
    }
    check_complete("m", CONFIG, whole() | extra)
    check_complete("m", UNLISTED, whole() | extra)
    check_complete("m", CONFIG | {"tie_word_embeddings": True}, _without("lm_head"))
    predicting = CONFIG | {"num_nextn_predict_layers": 1}
    check_complete("m", predicting, _with("model.layers.4.mlp.up_proj.weight"))


def test_layers_of_several_kinds_are_not_taken_for_each_other() -> None:
    """One layer of four sees all tokens and reads its keys as values, as in Gemma 4."""
    kinds = UNLISTED | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8}
    check_complete("m", kinds, _without("layers.3.self_attn.v_proj"))
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.v_proj"):
        check_complete("m", kinds, _without("layers.2.self_attn.v_proj"))


STARTS = {
    b"version https://git-lfs.github.com/spec/v1\n": "git-lfs pointer",
    b"<!DOCTYPE html><html>sign in</html>": "a web page",
    b'{"error":"Invalid credentials"}': "JSON, not the weights",
    b"PK\x03\x04 and more of it": "a zip archive",
    bytes(4096): "zeros from its first byte",
    b"": "not a safetensors file",
    struct.pack("<Q", 2**62) + b"{}": "not a safetensors file",
    struct.pack("<Q", 9) + b"{garbage}": "header is damaged",
    struct.pack("<Q", 4000) + b"[" * 4000: "header is damaged",
}


@pytest.mark.parametrize("start", STARTS, ids=list(STARTS.values()))
def test_a_file_that_holds_something_else(start: bytes, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", CONFIG, whole())
    (folder / "model.safetensors").write_bytes(start)
    with pytest.raises(UserError, match=STARTS[start]):
        read_model_facts(str(folder))


ENTRY = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
ENTRIES = {
    json.dumps({"w": ENTRY | {"shape": [2, 3]}}): "damaged at 'w'",
    json.dumps({"w": ENTRY | {"shape": [-2, -2]}}): "damaged at 'w'",
    json.dumps({"w": ENTRY | {"data_offsets": [8]}}): "damaged at 'w'",
    json.dumps({"w": ENTRY | {"data_offsets": "ab"}}): "damaged at 'w'",
    json.dumps({"w": 7}): "damaged at 'w'",
    f'{{"w": {json.dumps(ENTRY)}, "w": {json.dumps(ENTRY)}}}': "names w twice",
}


@pytest.mark.parametrize("header", ENTRIES)
def test_a_header_that_is_not_sound(header: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", CONFIG, whole())
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode("utf-8") + bytes(8))
    with pytest.raises(UserError, match=ENTRIES[header]):
        read_model_facts(str(folder))


def test_shards_of_two_models_are_not_one(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", CONFIG, whole(), shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(UserError, match=r"holds .* and so does model-00001"):
        read_model_facts(str(folder))
    write_safetensors(second, {"model.other.weight": TensorInfo("BF16", (4,))})
    with pytest.raises(UserError, match=r"weights of its index are not in the files"):
        read_model_facts(str(folder))
    second.write_bytes(kept)
    assert read_model_facts(str(folder)).num_layers == 4
