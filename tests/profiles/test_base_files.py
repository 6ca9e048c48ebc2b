"""What is seen of a base whose files changed, and what does not count as a change."""

import json
from pathlib import Path
from typing import Any

import pytest

from qlora_profiles import base_files, digests
from qlora_profiles.base_files import base_digests


def base(folder: Path, weights: bytes = b"w" * 100, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    header = json.dumps({"a": [0, len(weights)]}).encode("ascii")
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights)
    values = {"config": {"hidden_size": 8}, "tokenizer": {"model": 1}, "tokenizer_config": {"eos_token": "x"}, **files}
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


def changed(tmp_path: Path, **files: Any) -> list[str]:
    one, other = base_digests(base(tmp_path / "a")), base_digests(base(tmp_path / "b", **files))
    return [part for part in one if one[part] != other[part]]


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({}, []),
        ({"weights": b"w" * 99 + b"v"}, ["weights"]),
        ({"config": {"hidden_size": 8, "rope_theta": 1}}, ["config"]),
        ({"config": {"transformers_version": "9", "hidden_size": 8}}, []),
        ({"tokenizer": {"model": 2}}, ["tokenizer"]),
        ({"tokenizer_config": {"eos_token": "y"}}, ["tokenizer"]),
        ({"tokenizer_config": {"eos_token": "x", "add_bos_token": True}}, ["tokenizer"]),
        ({"tokenizer_config": {"chat_template": "t", "name_or_path": "/x", "eos_token": "x"}}, []),
        ({"added_tokens": {"<new>": 9}}, ["tokenizer"]),
        ({"generation_config": {"eos_token_id": 4}}, ["tokenizer"]),
        ({"generation_config": {"temperature": 0.1}}, []),
    ],
)
def test_what_decides_about_learning_is_seen_by_part(files: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    assert changed(tmp_path, **files) == parts


def test_of_a_large_file_the_header_the_size_and_blocks_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_files, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(digests, "BLOCK_BYTES", 10)
    whole = bytes(range(256)) * 40
    layer = whole[:5000] + bytes(200) + whole[5200:]  # longer than blocks lie apart: about 80 bytes
    for weights in (layer, whole + b"x", whole[:-1] + b"\0"):
        assert base_digests(base(tmp_path / "a", whole)) != base_digests(base(tmp_path / "b", weights))
    assert base_digests(base(tmp_path / "a", whole)) == base_digests(base(tmp_path / "b", whole))


def test_without_weights_nothing_is_known(tmp_path: Path) -> None:
    (base(tmp_path / "a") / "model.safetensors").unlink()
    assert base_digests(tmp_path / "a") == {}


def test_the_single_file_counts_where_an_index_lies_beside_it(tmp_path: Path) -> None:
    """As transformers loads it: a stale index says nothing, whether its shards are there or not."""
    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        (tmp_path / name).write_bytes(bytes(16))
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "gone.safetensors"}}', encoding="utf-8"
    )
    before = base_files.base_digests(tmp_path)["weights"]
    (tmp_path / "model.safetensors").write_bytes(bytes(15) + b"x")
    assert base_files.base_digests(tmp_path)["weights"] != before
