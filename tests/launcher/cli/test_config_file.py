import json
from pathlib import Path
from typing import Any

import pytest

from qlora_profiles.errors import UserError
from qlora_run.cli.config import load_config

SECTIONED = """\
model_name_or_path: "Qwen/Qwen2.5-7B-Instruct"  # 基础模型路径
dataset_path: "dataset/rows.jsonl"
output_dir: "output/model"
resume_from_checkpoint: true
quantization_config:
  load_in_4bit: true
  bnb_4bit_quant_type: "nf4"
lora_config:
  r: 32
  target_modules:
    - "q_proj"
    - "k_proj"
  bias: "none"
training_args:
  learning_rate: 2e-4
"""


def load(tmp_path: Path, text: str | bytes, name: str = "run.yaml") -> Any:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return load_config(path, name)


def raw_values(config: Any) -> dict[str, Any]:
    return {written.label: written.raw for written in config.written}


def test_sections_are_opened_and_every_setting_knows_its_line(tmp_path: Path) -> None:
    config = load(tmp_path, SECTIONED)
    assert raw_values(config) == {
        "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct",
        "dataset_path": "dataset/rows.jsonl",
        "output_dir": "output/model",
        "resume_from_checkpoint": "true",
        "quantization_config.load_in_4bit": "true",
        "quantization_config.bnb_4bit_quant_type": "nf4",
        "lora_config.r": "32",
        "lora_config.target_modules": ["q_proj", "k_proj"],
        "lora_config.bias": "none",
        "training_args.learning_rate": "2e-4",
    }
    assert config.written[-1].place == "run.yaml:15"
    assert config.written[-1].family == "training"


def test_json_is_read_as_json_with_its_lines(tmp_path: Path) -> None:
    text = '{\n\t"use_qlora": true,\n\t"learning_rate": 1E-4,\n\t"sample_prompts": ["\\ud83d\\ude00 a\\/b", "c"],\n'
    config = load(tmp_path, text + '\t"lora_target_modules": null\n}', "run.json")
    assert raw_values(config) == {
        "use_qlora": "true",
        "learning_rate": "1E-4",
        "sample_prompts": ["\U0001f600 a/b", "c"],
        "lora_target_modules": None,
    }
    assert [written.place for written in config.written] == ["run.json:2", "run.json:3", "run.json:4", "run.json:5"]


def test_what_json_writes_is_read_back(tmp_path: Path) -> None:
    values = {"system_prompt": 'a "b"\n\té \\ 😀', "run_name": "1e3", "sample_prompts": ["x, y", "/"]}
    for indent in (None, 2):
        assert raw_values(load(tmp_path, json.dumps(values, indent=indent), "run.json")) == values


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert raw_values(load(tmp_path, b"\xef\xbb\xbfepochs: 2\n")) == {"epochs": "2"}
    assert raw_values(load(tmp_path, b'\xef\xbb\xbf{"epochs": 2}', "run.json")) == {"epochs": "2"}


def test_plain_values_stay_as_they_are_written(tmp_path: Path) -> None:
    text = "run_name: 2026-01-01\nrevision: 0123\nsave_strategy: no\nlocal_dir: ~\nval_size: .5\n"
    assert raw_values(load(tmp_path, text)) == {
        "run_name": "2026-01-01",
        "revision": "0123",
        "save_strategy": "...",
        "local_dir": None,
        "val_size": ".5",
    }


def test_windows_line_ends_and_paths(tmp_path: Path) -> None:
    text = b"data: D:\\rows\\a.jsonl\r\noutput: 'C:\\runs'\r\n"
    assert raw_values(load(tmp_path, text)) == {"data": "D:\\rows\\a.jsonl", "output": "C:\\runs"}


def test_options_that_are_no_settings(tmp_path: Path) -> None:
    config = load(tmp_path, "profile: small\nauto: yes\nas: null\nepochs: 1\n")
    assert config.options == {"profile": "small", "auto": True}
    assert raw_values(config) == {"epochs": "1"}


def test_columns_may_be_a_mapping_and_ignored_keys_may_hold_anything(tmp_path: Path) -> None:
    text = "field: {messages: mesages, system: sys}\ngradient_checkpointing_kwargs: {use_reentrant: false}\n"
    config = load(tmp_path, text)
    assert raw_values(config)["field"] == ["messages=mesages", "system=sys"]
    assert len(config.written) == 2


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "lora_config:\n"])
def test_an_empty_file_asks_for_nothing(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).written == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("epochs: 1\n\nepohcs: 3\n", "run.yaml:3    unknown key epohcs; did you mean epochs?"),
        ("lora_config:\n  rr: 8\n", "run.yaml:2    unknown key rr"),
        ("lora_config:\n  lora_alpa: 8\n", "run.yaml:2    unknown key lora_alpa; did you mean lora_alpha?"),
        ("num_train_epoch: 8\n", "run.yaml:1    unknown key num_train_epoch; did you mean num_train_epochs?"),
        ("lora_confg:\n  r: 8\n", "run.yaml:1    unknown key lora_confg; did you mean lora_config?"),
        ("alpha: 8\n", "run.yaml:1    unknown key alpha"),
        ("config: other.yaml\n", "run.yaml:1    unknown key config"),
        ("lora_config: {auto: true}\n", "run.yaml:1    unknown key auto"),
        ("epochs: 1\nepochs: 2\n", "run.yaml:2    epochs is already set in line 1"),
        ("lora-r: 1\nlora_r: 2\n", "run.yaml:2    lora_r is already set in line 1"),
        ("lora_config:\n  r: 1\n  r: 2\n", "run.yaml:3    r is already set in line 2"),
        ("lora_config: 3\n", "run.yaml:1    section lora_config holds names with values"),
        ("- epochs\n", "run.yaml:1    a config file holds names with values"),
        ("just text\n", "run.yaml:1    a config file holds names with values"),
        ("? [a]\n: 1\n", "run.yaml:1    a name is needed here"),
        ("epochs: {a: 1}\n", "run.yaml:1    epochs takes a value, or a list of values"),
        ("target_modules: [[a]]\n", "run.yaml:1    target_modules takes a value"),
        ("target_modules: &a [*a]\n", "run.yaml:1    target_modules takes a value"),
        ("model: !!python/object/apply:os.system [ls]\n", "run.yaml:1"),
        ("model: !thing x\n", "run.yaml:1    model takes a value"),
        ("epochs: [1\nlora_r: 2\n", "run.yaml:2    not YAML: "),
        ("epochs: 1\n\tlora_r: 2\n", "run.yaml:2    not YAML: "),
        ("a: *b\n", "run.yaml:1    not YAML: "),
        ("epochs: 1\n---\nepochs: 2\n", "run.yaml:2    not YAML: "),
        ("auto: perhaps\n", "run.yaml:1    auto: 'perhaps' is not allowed; true or false"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_broken_json_is_told_as_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.json:2    not JSON: "):
        load(tmp_path, '{"epochs": 1,\n "lora_r" 2}', "run.json")
    with pytest.raises(UserError, match=r"run\.json:1    not JSON: "):
        load(tmp_path, '{"model": "\\x41"}', "run.json")


def test_another_encoding_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml: not UTF-8 from byte 9  -> save it as UTF-8"):
        load(tmp_path, "model: 模型".encode("gbk"))


def test_control_characters_are_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml: not YAML: "):
        load(tmp_path, b"model: \x00\n")


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"--config tain\.yaml: no such file; did you mean train\.yaml\?"):
        load_config(tmp_path / "tain.yaml", "tain.yaml")
    with pytest.raises(UserError, match="no such file"):
        load_config(tmp_path / "none" / "a.yaml", "none/a.yaml")


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--config \.: "):
        load_config(tmp_path, ".")
