"""What is known of a model before anything is loaded: its shape, from config and headers, without its weights."""

import re
from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.facts import ModelFacts
from qlora_run.model_facts.folder import no_such_folder, read_folder
from qlora_run.model_facts.known import known_configs, known_facts
from qlora_run.model_facts.targets import discover_targets

__all__ = ["discover_targets", "known_configs", "known_facts", "read_model_facts"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def read_model_facts(
    model: str,
    cache: Path | None = None,
    local_dir: Path | None = None,
    *,
    revision: str | None = None,
    allow_known: bool = False,
) -> ModelFacts:
    """The shape of a model in a folder, in the hub's cache, or on the hub.

    Args:
        model: a folder or a hub id.
        cache: folder of downloaded models, if not the hub's usual one.
        local_dir: folder that the hub model may be stored in.
        revision: branch, tag or commit of a hub model.
        allow_known: for planning only: where the model is not on this disk, take a well-known one's shape from
            the list that comes with the program. Its fingerprint is not that of the downloaded model.

    Raises:
        UserError: no such folder or model, something missing or damaged in it, or the hub unreachable.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return read_folder(folder, model)
    if folder.is_file():
        raise UserError(f"--model {model}  is a file; the folder around it is the model", f"--model {folder.parent}")
    if not HUB_ID.fullmatch(model) or folder.is_symlink():
        raise no_such_folder(model)
    if local_dir is not None and (local_dir / "config.json").is_file():
        return read_folder(local_dir, model)
    return _hub_model(model, cache, revision, allow_known)


def _hub_model(model: str, cache: Path | None, revision: str | None, allow_known: bool) -> ModelFacts:
    from qlora_run.model_facts.hub import read_cached, read_hub

    cached = read_cached(model, cache, revision)
    if cached is not None:
        return cached
    known = known_facts(model) if allow_known else None
    return known or read_hub(model, revision)
