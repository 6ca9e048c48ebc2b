"""The settings beside merged or trained weights: the base's own files, but for what must differ.

transformers writes a model's settings in the form of its own version: 5 leaves out the rope base that 4 reads, which
then takes 10,000 for it. What was published is read by every version that reads the base.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qlora_core.data.chat.tokenizer_files import read_json

CONFIG = "config.json"
GENERATION = "generation_config.json"
PARTS = ("text_config", "vision_config", "audio_config")
DTYPES = ("dtype", "torch_dtype")
RENAMED = {"dtype": "torch_dtype", "num_local_experts": "num_experts"}
"""Keys that transformers 5 writes, and what 4 calls them."""


def write_config(folder: Path, published: Mapping[str, Any], stop_ids: Sequence[int], dtype: str) -> None:
    """Write config.json: ``published`` without its quantisation, with the weights' ``dtype`` and the trained end."""
    config = {key: value for key, value in published.items() if key != "quantization_config"}
    config = _with_dtype(config, dtype)
    holders = {name: config[name] for name in PARTS[:1] if isinstance(config.get(name), Mapping)}
    config |= {name: _with_end(part, stop_ids, needed=False) for name, part in holders.items()}
    config = for_older(_with_end(config, stop_ids, needed=not holders))
    if config != read_json(folder / CONFIG):
        _write(folder / CONFIG, config)


def write_generation_config(
    folder: Path, published: Mapping[str, Any], stop_ids: Sequence[int], pad_id: int | None
) -> None:
    """Write generation_config.json: ``published``, ending at ``stop_ids`` first and at what it ended at before."""
    before = _as_list(published.get("eos_token_id"))
    settings = dict(published) | {"eos_token_id": list(dict.fromkeys([*stop_ids, *before]))}
    if settings.get("pad_token_id") is None:
        settings["pad_token_id"] = stop_ids[0] if pad_id is None else pad_id
    _write(folder / GENERATION, settings)


def _with_end(config: Mapping[str, Any], stop_ids: Sequence[int], *, needed: bool) -> dict[str, Any]:
    """The trained end first; where there was a list, or no number, with all that end an answer."""
    if "eos_token_id" not in config and not needed:
        return dict(config)
    stored = config.get("eos_token_id")
    if _as_list(stored)[:1] == [stop_ids[0]]:
        return dict(config)
    ids = list(dict.fromkeys([*stop_ids, *_as_list(stored)])) if isinstance(stored, list) else stop_ids[0]
    return dict(config) | {"eos_token_id": ids}


def _as_list(ids: Any) -> list[int]:
    return [number for number in (ids if isinstance(ids, list) else [ids]) if isinstance(number, int)]


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The weights' own format wherever one is named; the whole model's in any case."""
    changed: dict[str, Any] = {key: dtype for key in DTYPES if config.get(key) is not None} or {"dtype": dtype}
    parts = {name: config[name] for name in PARTS if isinstance(config.get(name), Mapping)}
    for name, part in parts.items():
        changed[name] = dict(part) | {key: dtype for key in DTYPES if part.get(key) is not None}
    return dict(config) | changed


def for_older(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings with the keys that transformers 4 reads beside those that only 5 knows.

    Where this transformers would then read the model otherwise, nothing is added.
    """
    older = _older_keys(config)
    for name in PARTS[:1]:
        if isinstance(config.get(name), Mapping):
            older[name] = _older_keys(config[name])
    return older if older == config or _means_the_same(older, config) else dict(config)


def _older_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    older = dict(config)
    rope = config.get("rope_parameters")
    added = _older_rope(rope) if isinstance(rope, Mapping) else {}
    added |= {old: config[new] for new, old in RENAMED.items() if new in config}
    for key, value in added.items():
        if older.get(key) is None and value is not None:
            older[key] = value
    return older


def _means_the_same(older: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    from transformers import AutoConfig

    def read(settings: Mapping[str, Any]) -> Any:
        with TemporaryDirectory() as folder:
            _write(Path(folder) / CONFIG, settings)
            return AutoConfig.from_pretrained(folder).to_dict() | {"_name_or_path": None}

    try:
        return _within(read(config), read(older))
    except Exception:  # an architecture of its own code, or settings that contradict each other
        return False


def _within(part: Any, whole: Any) -> bool:
    """Whether all that ``part`` says stands in ``whole`` too."""
    if isinstance(part, Mapping) and isinstance(whole, Mapping):
        return all(key in whole and _within(value, whole[key]) for key, value in part.items())
    return bool(part == whole)


def _older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings as transformers 4 names them: of the whole model, or of two kinds of layers."""
    if not all(isinstance(part, Mapping) for part in rope.values()):
        return _older_rope_of(rope)
    full, local = rope.get("full_attention"), rope.get("sliding_attention")
    older = _older_rope_of(full) if full else {}
    return older | ({"rope_local_base_freq": local["rope_theta"]} if local and "rope_theta" in local else {})


def _older_rope_of(rope: Mapping[str, Any]) -> dict[str, Any]:
    alone = ("rope_theta", "partial_rotary_factor")
    older = {key: rope[key] for key in alone if rope.get(key) is not None}
    if "rope_theta" in older:
        older["rotary_emb_base"] = older["rope_theta"]
    if "partial_rotary_factor" in older:
        older["rotary_pct"] = older["partial_rotary_factor"]
    scaling = {key: value for key, value in rope.items() if key not in alone}
    return older | ({"rope_scaling": scaling} if scaling and scaling != {"rope_type": "default"} else {})


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
