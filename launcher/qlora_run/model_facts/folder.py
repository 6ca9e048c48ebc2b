"""A model in a local folder: what lies there, and what is missing."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from msgspec import structs

from qlora_profiles import run_folder
from qlora_profiles.base_files import INDEX, SINGLE, base_digests
from qlora_profiles.errors import UserError
from qlora_profiles.facts import ModelFacts
from qlora_profiles.suggest import dangling
from qlora_profiles.weight_names import AGAIN
from qlora_run.model_facts.completeness import check_complete
from qlora_run.model_facts.config import Config, quantised
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo, Tensors, read_header
from qlora_run.model_facts.summary import fingerprint, summarise

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")
OTHER_FORMATS = (
    (".bin", "PyTorch .bin weights only; safetensors are needed"),
    (".pth", "PyTorch .pth weights only; safetensors are needed"),
    (".gguf", "a GGUF file only; it is made for inference and cannot be trained"),
)


def read_folder(folder: Path, source: str) -> ModelFacts:
    """The facts of the model in ``folder``; ``source`` is what it is called in them and in errors.

    Raises:
        UserError: no config, no weights, damaged weights, no tokenizer.
    """
    config = read_config(folder, source)
    files = weight_files(folder, source)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(
            f"--model {source}  no tokenizer (tokenizer.json) beside the weights", "copy it there from the original"
        )
    facts = facts_of(source, config, _tensors(folder, files), sum(file.stat().st_size for file in files))
    return structs.replace(facts, contents=_contents(folder))


def _tensors(folder: Path, files: Iterable[Path]) -> dict[str, TensorInfo]:
    """The tensors of all files, each in one of them, and all that the index names.

    Raises:
        UserError: a file is damaged or another model's.
    """
    tensors: dict[str, TensorInfo] = {}
    owner: dict[str, str] = {}
    for path in files:
        header = read_header(path)
        twice = next((name for name in header if name in owner), None)
        if twice is not None:
            raise UserError(f"{path}: holds {twice}, and so does {owner[twice]}; one is another model's", AGAIN)
        tensors |= header
        owner |= dict.fromkeys(header, path.name)
    if (folder / SINGLE).is_file():
        return tensors  # no index is asked then, by transformers neither
    lost = [name for name, file in _weight_map(folder / INDEX).items() if owner.get(name) != file]
    if lost:
        file = _weight_map(folder / INDEX)[lost[0]]
        said = f"{len(lost)} weights of its index are not in the files that it names ({lost[0]} in {file})"
        raise UserError(f"{folder / INDEX}: {said}", AGAIN)
    return tensors


def _contents(folder: Path) -> dict[str, str]:
    try:
        return base_digests(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror or error})", AGAIN) from error


def facts_of(source: str, config: Config, tensors: Tensors, file_bytes: int | None) -> ModelFacts:
    """Facts from headers; the packed tensors of a quantised checkpoint tell no shape, so its config does."""
    identity = fingerprint(config, tensors)
    if quantised(config) is None:
        check_complete(source, config, tensors)
        return summarise(source, config, tensors, exact=True, fingerprint=identity, file_bytes=file_bytes)
    planned = tensors_from_config(config, source)
    return summarise(source, config, planned, exact=False, fingerprint=identity, file_bytes=file_bytes)


def read_config(folder: Path, source: str) -> dict[str, Any]:
    """``config.json`` of a folder.

    Raises:
        UserError: there is none (an adapter says whose it is), or it is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder, source)
    try:
        config = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})", AGAIN) from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a model's config", AGAIN)
    return config


def _no_config(folder: Path, source: str) -> UserError:
    adapter = folder / run_folder.ADAPTER_CONFIG
    if adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8-sig")).get("base_model_name_or_path", "BASE")
        return UserError(f"--model {source}  holds an adapter, not a model", f"--model {base}")
    near = [child.name for child in _models_in(folder)]
    said = f"--model {source}  no config.json there"
    if near:
        return UserError(f"{said}, but in {', '.join(near[:3])}", f"--model {source}/{near[0]}")
    return UserError(f"{said}: not a model folder", "a folder with config.json and *.safetensors")


def weight_files(folder: Path, source: str) -> list[Path]:
    """The safetensors files of a model, all of them there.

    Raises:
        UserError: none, other formats only, or a shard is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _shards(folder, source)
    found = sorted(folder.glob("*.safetensors"))
    if found:
        said = f"neither {SINGLE} nor {INDEX} beside {found[0].name}"
        raise UserError(f"--model {source}  {said}", "download what is missing, or rename it where it is the only one")
    others = (said for suffix, said in OTHER_FORMATS if any(folder.glob(f"*{suffix}")))
    raise UserError(
        f"--model {source}  {next(others, 'no weights (*.safetensors) there')}", "download the safetensors weights"
    )


def _shards(folder: Path, source: str) -> list[Path]:
    names = sorted(set(_weight_map(folder / INDEX).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        said = f"{len(missing)} of {len(names)} weight files are missing ({missing[0]})"
        raise UserError(f"--model {source}  {said}", AGAIN)
    return [folder / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor. Raises UserError where the index is damaged."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if named and all(type(each) is str for each in named.values()):
            return dict(named)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: damaged", AGAIN) from error
    raise UserError(f"{index}: damaged", AGAIN)


def no_such_folder(model: str) -> UserError:
    """The error for a path that is not there, with the model folders near it."""
    path = Path(model).expanduser()
    if link := dangling(path):
        return UserError(f"--model {model}  no such folder{link}", "a model's folder")
    prefix = model[: len(model) - len(path.name)] if model.endswith(path.name) else ""
    near = _nearest(path.name, [child.name for child in _models_in(path.parent)])
    if near:
        nearby = ", ".join(prefix + name for name in near)
        return UserError(f"--model {model}  no such folder; nearby: {nearby}", f"--model {prefix}{near[0]}")
    return UserError(f"--model {model}  no such folder", "a model's folder, a hub id, or: qlora-run demo")


def _nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three names, the most alike first."""
    listed = sorted(names)
    alike = get_close_matches(name, listed, n=3, cutoff=0.3)
    return (alike + [n for n in listed if n not in alike])[:3]


def _models_in(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if (child / "config.json").is_file())
    except OSError:
        return []
