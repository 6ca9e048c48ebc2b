"""Bases and adapters that are damaged, not all there or of another model: refused by name on every way of loading."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.models import save_tiny_model, tiny_model

from qlora_core.model import whole_weights
from qlora_core.model.saved_adapter import put_on
from qlora_core.model.watched_weights import watched_weights
from qlora_core.model.whole_weights import check_names, load_causal_lm
from qlora_profiles.errors import UserError

Tensors = dict[str, torch.Tensor]
NORM, UP = "model.layers.1.self_attn.q_norm.weight", "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    model = get_peft_model(
        tiny_model("qwen3"), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    model.save_pretrained(str(folder))
    return folder


def changed(folder: Path, to: Path, change: Callable[[Tensors], None], file: str = "model.safetensors") -> Path:
    """A copy of a folder whose tensors were changed."""
    shutil.copytree(folder, to)
    tensors = load_file(to / file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, to / file, {"format": "pt"})
    return to


def _drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(name)


def _set(name: str, value: float) -> Callable[[Tensors], None]:
    return lambda tensors: tensors[name].view(-1).__setitem__(-1, value)


def _add(name: str, *shape: int) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__setitem__(name, torch.ones(shape))


def _prefix(prefix: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return change


NAMES = {
    "a norm": (_drop(NORM), rf"missing in its files: 1 weight \({NORM}\)"),
    "the head": (_drop("lm_head.weight"), r"missing in its files: 1 weight \(lm_head\.weight\)"),
    "compiled": (_prefix("_orig_mod."), r"a compiled model .*\(_orig_mod\.lm_head"),
    "parallel": (_prefix("module."), "data-parallel"),
    "a strange start": (_prefix("strange."), r"36 weights \(.*they hold 36 weights \(strange\.lm_head"),
    "narrow": (_add(UP, 64, 64), rf"of another shape than the model: {UP}: 64 x 64 in the file, 128 x 64"),
    "a bias": (
        _add("model.layers.0.self_attn.q_proj.bias", 64),
        r"its files hold 1 weight \(.*q_proj\.bias\), which the model",
    ),
    "a norm more": (_add("model.layers.0.self_attn.v_norm.weight", 16), "v_norm.* has not"),
    "a layer more": (_add("model.layers.3.mlp.up_proj.weight", 128, 64), r"layers\.3.* has not"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_are_not_the_models_are_refused(
    case: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, said = NAMES[case]
    folder = changed(base, tmp_path / "m", change)
    with pytest.raises(UserError, match=said):  # before a weight is read
        check_names(str(folder), {})
    monkeypatch.setattr(whole_weights, "check_names", lambda *_: None)
    with pytest.raises(UserError, match=said):  # and where that could not be told before
        load_causal_lm(str(folder))


def _zero_layer(tensors: Tensors) -> None:
    for name in tensors:
        if "layers.1." in name:
            tensors[name].zero_()


VALUES = {
    "nan in a norm": (_set(NORM, float("nan")), rf"the base itself is damaged: NaN in 1 weight \({NORM}\)"),
    "nan in a matrix": (_set(UP, float("nan")), rf"NaN in 1 weight \({UP}\)"),
    "infinite": (_set("model.embed_tokens.weight", float("-inf")), "infinite values in .*embed_tokens"),
    "zero layer": (_zero_layer, r"damaged: nothing but zeros in model\.layers\.1"),
    "zero last norm": (lambda t: t["model.norm.weight"].zero_(), r"nothing but zeros in model\.norm\.weight"),
    "zero embedding": (
        lambda t: t["model.embed_tokens.weight"].zero_(),
        "nothing but zeros in .*embed_tokens",
    ),
}


def _arguments(method: str) -> dict[str, Any]:
    from transformers import BitsAndBytesConfig

    quantised = {"qlora-4": {"load_in_4bit": True}, "qlora-8": {"load_in_8bit": True}}.get(method)
    config = {"quantization_config": BitsAndBytesConfig(**quantised)} if quantised else {}
    return {"dtype": torch.float32, "device_map": {"": "cpu"}} | config


@pytest.mark.parametrize("case", VALUES)
@pytest.mark.parametrize("method", ["lora", "qlora-4", "qlora-8"])
def test_values_that_no_model_has_are_the_bases(method: str, case: str, base: Path, tmp_path: Path) -> None:
    change, said = VALUES[case]
    with pytest.raises(UserError, match=said):
        load_causal_lm(str(changed(base, tmp_path / "m", change)), **_arguments(method))


@pytest.mark.parametrize("method", ["lora", "qlora-4", "qlora-8"])
def test_a_whole_base_loads_without_a_word(
    method: str, base: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    check_names(str(base), {})
    assert (caplog.text, capsys.readouterr().err) == ("", "")
    load_causal_lm(str(base), said.append, **_arguments(method))
    assert said == []


def test_what_a_model_has_no_use_for_is_told(base: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors["score.weight"] = torch.ones(2, 64)
        tensors["mtp.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["model.layers.0.mlp.down_proj.weight"].zero_()
        tensors["model.layers.0.self_attn.q_norm.weight"].zero_()

    said: list[str] = []
    load_causal_lm(str(changed(base, tmp_path / "m", change)), said.append)
    assert [line.partition(": ")[2].partition(": put")[0] for line in said] == [
        "not used, for no part of this model: 1 weight (score.weight)",
        "nothing but zeros in 2 weights (model.layers.0.mlp.down_proj.weight, model.layers.0.self_attn.q_norm.weight)",
    ]


def test_values_beyond_the_format_that_computes_are_not_called_damaged(base: Path, tmp_path: Path) -> None:
    folder = changed(base, tmp_path / "m", _set(UP, 1e6))
    load_causal_lm(str(folder), dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"values up to 1e\+06 in .*, and torch\.float16 ends at 6\.55e\+04"):
        load_causal_lm(str(folder), dtype=torch.float16)


def test_what_nobody_could_watch_is_looked_at_afterwards(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(changed(base, tmp_path / "m", _set(NORM, float("nan"))))
    with watched_weights() as weights, pytest.raises(UserError, match=NORM):
        weights.check("m", model, torch.float32)


@pytest.mark.parametrize("bad", [b"", b"\xff" * 64, b"version https://git-lfs", bytes(4096)], ids=repr)
def test_a_damaged_file_is_one_line(bad: bytes, base: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "m"))
    (folder / "model.safetensors").write_bytes(bad)
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        load_causal_lm(str(folder))


ADAPTER_FILE = "adapter_model.safetensors"
LORA_A, LORA_B = (f"base_model.model.model.layers.0.mlp.up_proj.lora_{part}.weight" for part in "AB")
ADAPTERS = {
    "half": (_drop(LORA_B), r"missing in the adapter: 1 weight \(.*layers\.0\.mlp\.up_proj\.lora_B"),
    "of more layers": (
        _add(LORA_A.replace("layers.0", "layers.7"), 4, 64),
        r"not for this model: .*layers\.7",
    ),
    "of a wider model": (_add(LORA_A, 4, 128), "of another shape"),
    "nan": (_set(LORA_A, float("nan")), r"the adapter is damaged: NaN .* 1 weight \(.*lora_A"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(case: str, adapter: Path, tmp_path: Path) -> None:
    change, said = ADAPTERS[case]
    with pytest.raises(UserError, match=said):
        put_on(tiny_model("qwen3"), changed(adapter, tmp_path / "a", change, ADAPTER_FILE))


def test_an_adapter_that_fits_computes_what_it_was_saved_with(adapter: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    def learned(tensors: Tensors) -> None:
        for tensor in tensors.values():
            tensor.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))

    folder = changed(adapter, tmp_path / "a", learned, ADAPTER_FILE)
    ids = torch.arange(3, 20)[None]
    ours, theirs = put_on(tiny_model("qwen3"), folder), PeftModel.from_pretrained(tiny_model("qwen3"), str(folder))
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("file", [ADAPTER_FILE, "adapter_config.json"])
@pytest.mark.parametrize("bad", [b"", b"{", bytes(64)], ids=repr)
def test_a_damaged_adapter_is_one_line(file: str, bad: bytes, adapter: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "a"))
    (folder / file).write_bytes(bad)
    with pytest.raises(UserError, match=f"{file}: the adapter cannot be read"):
        put_on(tiny_model("qwen3"), folder)
    (folder / ADAPTER_FILE).unlink()
    with pytest.raises(UserError, match="without its weights"):
        put_on(tiny_model("qwen3"), folder)
