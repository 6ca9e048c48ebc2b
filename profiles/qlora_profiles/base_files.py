"""What a base model's files hold, as digests of its parts: what was trained on is known again wherever it lies.

``weights`` is exact for files up to 64 MiB, and stands on a sample of larger ones (``digests.sampled_digest``).
``tokenizer`` covers the tokens and how text becomes tokens; neither it nor ``config`` counts notes, as of who saved it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qlora_profiles.digests import sampled_digest

WHOLE_BYTES = 64 * 2**20
"""Larger files are sampled: set by hand."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tekken.json",
    "spiece.model",
)
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
    """The safetensors files that transformers loads: the single one, else those of the index, there or not."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    shards = _json(folder / INDEX).get("weight_map")
    if isinstance(shards, dict):
        return [folder / str(name) for name in sorted(set(shards.values()))]
    return sorted(folder.glob("model*.safetensors"))


def _weights(files: Iterable[Path]) -> str:
    """Of all files in the order of their names, which do not count themselves."""
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(sampled_digest(file, WHOLE_BYTES).encode("ascii"))
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
