"""Well-known hub models whose shape is on file, for planning without a network."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from qlora_profiles.facts import ModelFacts
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.safetensors_header import TensorInfo
from qlora_run.model_facts.summary import fingerprint, summarise


@cache
def known_configs() -> Mapping[str, dict[str, Any]]:
    """Config values by hub id, from ``models.yaml``."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("qlora_profiles") / "models.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.load(text, Loader=loader)
    return {name: _complete(entry, entries) for name, entry in entries.items()}


def _complete(entry: dict[str, Any], entries: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    base = entry.get("like")
    own = {key: value for key, value in entry.items() if key != "like"}
    return {**_complete(entries[base], entries), **own} if base else own


@cache
def known_facts(model: str) -> ModelFacts | None:
    """A known model's facts (``exact`` is false), or ``None``. Hub ids count without regard to case."""
    name = {known.lower(): known for known in known_configs()}.get(model.lower())
    if name is None:
        return None
    config = known_configs()[name]
    tensors = tensors_from_config(config, name)
    if beside := config.get("params_beside_text"):
        tensors["vision_tower.all"] = TensorInfo("BF16", (beside,))
    return summarise(model, config, tensors, exact=False, fingerprint=fingerprint(config, tensors))
