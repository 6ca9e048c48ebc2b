"""Merging and loading again: a base with code of its own, a base in another cache, a merge that was interrupted."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import CHATML, save_tiny_model, tiny_model

from qlora_core.export.artifacts import BaseRecord
from qlora_core.export.merge import load_adapted, merge, read_record
from qlora_core.export.sealed import seal
from qlora_core.inference.load import load
from qlora_core.jobs.merge import run_merge
from qlora_core.model.loading import explained
from qlora_profiles import codec, run_folder
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.jobs import ChatJob, MergeJob

OWN_CODE = """
from transformers import Qwen3Config, Qwen3ForCausalLM

class OwnConfig(Qwen3Config):
    model_type = "own"

class OwnForCausalLM(Qwen3ForCausalLM):
    config_class = OwnConfig
"""
OWN = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def own_base(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as an architecture that only its own Python code knows."""
    folder = Path(shutil.copytree(base, tmp_path_factory.mktemp("own") / "own_model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"model_type": "own", "architectures": ["OwnForCausalLM"], "auto_map": OWN}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "own.py").write_text(OWN_CODE, encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that comes with a model is copied below the test's folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])


def adapter_for(
    base: str, folder: Path, tokenizer: Path, model_type: str = "qwen3", revision: str | None = None
) -> Path:
    """An adapter that changes what the model says, with its tokenizer and its record."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(tiny_model("qwen3"), config).save_pretrained(str(folder))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder / name)
    shape: dict[str, Any] = {"model_type": model_type, "hidden_size": 64, "num_layers": 3, "method": "lora"}
    record = BaseRecord(model=base, revision=revision, fingerprint="f", stop_ids=(2,), **shape)
    codec.save(record, folder / run_folder.BASE_RECORD)
    return folder


def test_a_base_with_code_of_its_own_is_merged_only_when_allowed(own_base: Path, tmp_path: Path) -> None:
    adapter = adapter_for(str(own_base), tmp_path / "a", own_base, model_type="own")
    for work in (
        lambda: run_merge(MergeJob(target=str(adapter), output=str(tmp_path / "merged"))),
        lambda: load(ChatJob(target=str(adapter))),
    ):
        with pytest.raises(UserError, match="Python code of its own") as caught:
            work()
        assert "\n" not in str(caught.value)
        assert (caught.value.fix or "").startswith("--trust-remote-code")
    assert not (tmp_path / "merged").exists()
    job = MergeJob(target=str(adapter), output=str(tmp_path / "merged"), validate=True, trust_remote_code=True)
    run_merge(job)
    chat_model = load(ChatJob(target=str(tmp_path / "merged"), trust_remote_code=True))
    assert type(chat_model.model).__name__ == "OwnForCausalLM"


DAMAGES: dict[str, tuple[str, bytes | None, str]] = {
    "another scale": ("adapter_config.json", b"{}", r"adapter_config\.json: damaged since"),
    "another end": ("base.json", b"{}", r"base\.json: damaged since"),
    "no template": ("chat_template.jinja", None, r"chat_template\.jinja: gone since"),
    "no text": ("chat_template.jinja", b"\x9e\xff", r"chat_template\.jinja  is not UTF-8"),
    "half a template": ("chat_template.jinja", b"{% for m in messages %}{{ m", r"/a: the chat template cannot be read"),
    "nested": ("tokenizer_config.json", b"[" * 20_000, r"tokenizer_config\.json  is not JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_beside_an_adapter_is_named_before_anything_is_written(damage: str, base: Path, tmp_path: Path) -> None:
    adapter = adapter_for(str(base), tmp_path / "a", base)
    seal(adapter)
    name, bad, said = DAMAGES[damage]
    (adapter / name).unlink() if bad is None else (adapter / name).write_bytes(bad)
    with pytest.raises(UserError, match=said) as caught:
        merge(adapter, tmp_path / "merged")
    assert caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_template_that_somebody_changed_is_no_damage(base: Path, tmp_path: Path) -> None:
    adapter = adapter_for(str(base), tmp_path / "a", base)
    seal(adapter)
    own = CHATML.replace("<|im_start|>", "<|im_start|> ")
    (adapter / "chat_template.jinja").write_text(own, encoding="utf-8")
    assert load(ChatJob(target=str(adapter))).chat.template == own


def test_a_merge_to_be_validated_fails_where_nothing_can_be_compared(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_for(str(base), tmp_path / "a", base)
    monkeypatch.setattr(sys, "executable", shutil.which("false") or sys.executable)  # a reader that dies at once
    with pytest.raises(EnvironmentProblem, match=r"could not be compared \(merged: the reading process died"):
        run_merge(MergeJob(target=str(adapter), output=str(tmp_path / "merged"), validate=True))
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_only_that_value_error_is_explained() -> None:
    with pytest.raises(ValueError, match="something else"), explained("m"):
        raise ValueError("something else")


def test_a_gated_base_names_the_login() -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    response = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid/org/x"))
    gated = GatedRepoError("403\nAccess is restricted", response=response)
    for error, cause in ((gated, None), (OSError("You are trying to access a gated repo.\nMake sure"), gated)):
        with pytest.raises(UserError, match="org/x: gated; your account needs access") as caught, explained("org/x"):
            raise error from cause
        assert caught.value.fix == "hf auth login"


def test_a_hub_base_is_looked_for_in_the_cache_of_its_run(base: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    for name, revision in (("tiny", "v1"), ("other", "main")):
        stored = cache / f"models--org--{name}"
        shutil.copytree(base, stored / "snapshots" / "abc")
        (stored / "refs").mkdir()
        (stored / "refs" / revision).write_text("abc", encoding="utf-8")
    adapter = adapter_for("org/tiny", tmp_path / "a", base, revision="v1")
    with pytest.raises(UserError, match="org/tiny: cannot be loaded"):
        load_adapted(adapter, read_record(adapter), None)
    assert load(ChatJob(target=str(adapter), cache=str(cache))).stop_ids == (2,)
    job = MergeJob(target=str(adapter), output=str(tmp_path / "merged"), cache=str(cache), validate=True)
    run_merge(job)  # the other base has no revision v1
    assert load_adapted(adapter, read_record(adapter), "org/other", cache=str(cache)) is not None


def test_what_an_interrupted_merge_left_is_never_mixed_in(base: Path, tmp_path: Path) -> None:
    adapter, output = adapter_for(str(base), tmp_path / "a", base), tmp_path / "merged"
    part = tmp_path / "merged.part"
    part.mkdir()
    codec.save(read_record(adapter), part / run_folder.BASE_RECORD)
    (part / "added_tokens.json").write_bytes(b"{}")
    merge(adapter, output)
    assert not part.exists()
    assert not (output / "added_tokens.json").exists()
    assert (output / "model.safetensors").is_file()


def test_a_folder_of_a_person_is_not_taken_for_a_leftover(base: Path, tmp_path: Path) -> None:
    adapter, mine = adapter_for(str(base), tmp_path / "a", base), tmp_path / "merged.part" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="did not write"):
        merge(adapter, tmp_path / "merged")
    assert mine.read_text(encoding="utf-8") == "x"


def test_a_merge_killed_while_it_writes_leaves_what_the_next_one_clears(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    adapter = adapter_for(str(base), tmp_path / "a", base)

    def killed(self: Any, folder: str, **arguments: Any) -> None:
        (Path(folder) / "half.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", killed)
        with pytest.raises(KeyboardInterrupt):
            merge(adapter, tmp_path / "merged")
    merge(adapter, tmp_path / "merged")
    assert not (tmp_path / "merged" / "half.safetensors").exists()
