"""A whole model as it was published: its weights' names, its settings, and the parts of it that nobody loaded."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qlora_core.data.chat.tokenizer_files import read_json, read_tokenizer
from qlora_core.export import model_config
from qlora_core.export.tokenizer_copy import CODE

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


class Base(NamedTuple):
    """Where a base lies: its folder, or a hub id with what ``from_pretrained`` needs to find it on this disk."""

    source: str
    arguments: Mapping[str, Any]

    def file(self, name: str) -> Path | None:
        """A file of the base; ``None`` where there is no such file.

        Of a hub model only the settings are fetched: what else there is lies on this disk once it was loaded.
        """
        folder = Path(self.source)
        if folder.is_dir():
            return path if (path := folder / name).is_file() else None
        from transformers.utils.hub import cached_file

        where = {key: self.arguments.get(key) for key in ("revision", "cache_dir")}
        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "connection_errors")}
        for on_disk in (True, False) if name == model_config.CONFIG else (True,):
            if found := cached_file(self.source, name, local_files_only=on_disk, **quiet, **where):
                return Path(found)
        return None

    def settings(self, name: str) -> dict[str, Any]:
        """A JSON file of the base; empty where there is none."""
        path = self.file(name)
        return read_json(path) if path else {}


def save_model(model: Any, base: Base, folder: Path, tokenizer: Path, stop_ids: Sequence[int]) -> None:
    """Write a model's weights and settings, ending at ``stop_ids``, as its base was published.

    ``tokenizer`` is the folder of the model's. A base of which transformers loads a part under other names keeps
    transformers' own settings.
    """
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # the base's may be one that transformers refuses to write
    model.config.use_cache = True
    model.save_pretrained(str(folder), safe_serialization=True)
    published, written = base.settings(model_config.CONFIG), read_json(folder / model_config.CONFIG)
    names, stored = _names(folder), _published_files(base)
    if "quantization_config" not in published and not names <= (stored.keys() or names):
        published = written
    elif "quantization_config" not in published:
        _carry_over(stored, folder, stored.keys() - names - _known(model))
    dtype = str(model.dtype).removeprefix("torch.")
    model_config.write_config(folder, published or written, stop_ids, dtype)
    model_config.write_generation_config(folder, base.settings(model_config.GENERATION), stop_ids, pad_id_of(tokenizer))
    _copy_code(base, folder, published)


def pad_id_of(tokenizer: Path) -> int | None:
    """The number of the padding token that a tokenizer's folder names, where its vocabulary has it."""
    files = read_tokenizer(tokenizer)
    token = files.special_tokens.get("pad_token")
    number: int | None = files.tokenizer.token_to_id(token) if token else None
    return number


def _names(folder: Path) -> set[str]:
    """Names of the tensors in a model's folder."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    return names


def _published_files(base: Base) -> dict[str, Path]:
    """The base's tensors by name, with the file of each; empty where it has no safetensors."""
    from safetensors import safe_open

    index = {} if base.file(WEIGHTS) else base.settings(INDEX).get("weight_map")
    files = set(index.values()) if isinstance(index, Mapping) and index else {WEIGHTS}
    found: dict[str, Path] = {}
    for path in filter(None, map(base.file, sorted(files))):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _known(model: Any) -> set[str]:
    """Names that the model has itself: what of these is not written is tied to another, or is computed."""
    return set(model.state_dict()) | set(getattr(model, "all_tied_weights_keys", None) or ())


def _carry_over(files: Mapping[str, Path], folder: Path, names: set[str]) -> None:
    """Copy tensors that training never loaded, such as the part of a model that sees, into a file of their own."""
    if not names:
        return
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors: dict[str, Any] = {}
    for path in sorted({files[name] for name in names}):
        with safe_open(path, "pt") as file:
            tensors |= {name: file.get_tensor(name) for name in names if files[name] == path}
    shards = [*sorted(folder.glob("*.safetensors")), folder / "carried.safetensors"]
    save_file(tensors, shards[-1], metadata={"format": "pt"})
    _number(folder, shards)


def _number(folder: Path, shards: Sequence[Path]) -> None:
    """Name files of weights as transformers does, with an index of what is in which."""
    from safetensors import safe_open

    where: dict[str, str] = {}
    total = 0
    for number, path in enumerate(shards, 1):
        named = path.rename(folder / f"model-part-{number:05}.safetensors")
        total += named.stat().st_size
        with safe_open(named, "pt") as file:
            where |= dict.fromkeys(file.keys(), f"model-{number:05}-of-{len(shards):05}.safetensors")
    for path in folder.glob("model-part-*.safetensors"):
        number = int(path.stem.rsplit("-", 1)[1])
        path.rename(folder / f"model-{number:05}-of-{len(shards):05}.safetensors")
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2)
    (folder / INDEX).write_text(text + "\n", encoding="utf-8", newline="\n")


def _copy_code(base: Base, folder: Path, published: Mapping[str, Any]) -> None:
    """The Python files that a base's settings name: whoever loaded it trusted them."""
    if "auto_map" not in published or (config := base.file(model_config.CONFIG)) is None:
        return
    for path in config.parent.glob(CODE):
        (folder / path.name).write_bytes(path.read_bytes())
