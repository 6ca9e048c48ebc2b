"""What a base model's files hold, as digests of its parts: what was trained on is known again wherever it lies.

``weights`` is exact for files up to 64 MiB. Of a larger one it stands on its header (names, types, shapes, places), its
size and 128 blocks of 64 KiB spread evenly, so that sixteen gigabytes take a moment: other weights of the same shape
and whole layers that were changed are seen, a change of a few values in a large file may not be. ``tokenizer`` covers
the tokens and how text becomes tokens; neither it nor ``config`` counts notes such as who saved it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

WHOLE_BYTES = 64 * 2**20
BLOCK_BYTES = 64 * 2**10
BLOCKS = 128
"""All three set by hand: an 8-billion model in five files takes 640 reads."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "tekken.json")
TOKEN_SETTINGS = (
    *(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")),
    "additional_special_tokens",
    "extra_special_tokens",
    "added_tokens_decoder",
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Of the settings beside a tokenizer what decides about tokens; the template is rendered, and known by that."""
NOTES = ("transformers_version", "_name_or_path", "name_or_path")
"""Of ``config.json`` what decides about nothing."""


def base_digests(folder: Path) -> dict[str, str]:
    """Digests of a base's ``weights``, ``tokenizer`` and ``config``; none where no weights lie there.

    Raises:
        OSError: a file cannot be read.
    """
    files = weight_files(folder)
    if not files:
        return {}
    config = {key: value for key, value in _json(folder / "config.json").items() if key not in NOTES}
    return {"weights": _weights(files), "tokenizer": _tokenizer(folder), "config": _text_digest(config)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model is loaded from: those of its index, there or not, else the single one."""
    shards = _json(folder / INDEX).get("weight_map")
    if isinstance(shards, dict):
        return [folder / str(name) for name in sorted(set(shards.values()))]
    return [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("model*.safetensors"))


def _weights(files: Iterable[Path]) -> str:
    """Of all files in the order of their names, which do not count themselves."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(_sampled(file).encode("ascii"))
    return digest.hexdigest()


def _sampled(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode("ascii"))
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(file.read(8 + int.from_bytes(file.read(8), "little")))
        for block in range(BLOCKS):
            file.seek(block * (size - BLOCK_BYTES) // (BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def _tokenizer(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            digest.update(name.encode("ascii") + (folder / name).read_bytes())
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        settings = {key: value for key, value in _json(folder / name).items() if key in TOKEN_SETTINGS}
        digest.update(_text_digest(settings).encode("ascii"))
    return digest.hexdigest()


def _text_digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8")).hexdigest()


def _json(path: Path) -> Mapping[str, Any]:
    """A JSON object; empty where there is none that can be read: who loads it will say so."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
