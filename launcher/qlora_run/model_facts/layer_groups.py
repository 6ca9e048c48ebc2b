"""The decoder layers of a checkpoint, alike ones together: from each layer's tensors, and from what the config says."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import structs

from qlora_profiles.architectures import Architecture
from qlora_profiles.facts import LayerGroup, LinearShape
from qlora_profiles.layer_kinds import ATTENTION, KIND_BY_MODULE, LayerKind
from qlora_run.model_facts import config as configs
from qlora_run.model_facts.config import Config, Dimensions
from qlora_run.model_facts.safetensors_header import TensorInfo

EXPERT = re.compile(r"(?:^|\.)experts\.")
NORM = re.compile(r"(?:norm|ln_\w+)\w*\.weight$")
QUERY_KEY_NORM = re.compile(r"(?:^|[._])(?:q|k|query|key)_(?:layer)?norm\.weight$")
POST_NORM = re.compile(r"post_(?:feedforward|mlp)_layernorm\.weight$")
OF_HEAD = re.compile(r"(?:^|\.)q_(?:layer)?norm\.weight$")

Layer = Mapping[str, TensorInfo]


def grouped(
    config: Config, sizes: Dimensions, layers: Mapping[int, Layer]
) -> tuple[tuple[LayerGroup, ...], tuple[int, ...]]:
    """The groups, in the order in which their first layers come, and the group of each layer where there are several.

    ``layers`` are the tensors of each decoder layer, by its index and their names inside of it.
    """
    each = [_of_one(config, sizes, index, layers[index]) for index in sorted(layers)]
    counts = Counter(each)
    groups = tuple(structs.replace(one, count=count) for one, count in counts.items())
    places = {one: place for place, one in enumerate(counts)}
    return groups, tuple(places[one] for one in each) if len(groups) > 1 else ()


def _of_one(config: Config, sizes: Dimensions, index: int, layer: Layer) -> LayerGroup:
    """A layer as a group of its own."""
    linears, kind = tuple(_linears(layer, configs.family_of(config))), _kind(config, index, layer)
    experts: dict[str, Any] = configs.experts(config) if any(map(EXPERT.search, layer)) else {}
    return LayerGroup(
        kind=kind,
        count=1,
        linears=linears,
        params=sum(tensor.params for tensor in layer.values() if len(tensor.shape) > 1),
        intermediate_size=_width(linears, ("gate_proj", "up_proj", "fc1")) or sizes.intermediate_size,
        **_norms(layer, sizes.hidden_size),
        **(_attention(config, sizes, kind, layer, linears) if kind in ATTENTION else {}),
        **experts,
    )


def _kind(config: Config, index: int, layer: Layer) -> LayerKind:
    """By the names of what is in the layer, where they tell; else as the config says."""
    modules = {name.split(".", 1)[0] for name in layer}
    found = (kind for module, kind in KIND_BY_MODULE.items() if module in modules)
    named = None if "self_attn" in modules else next(found, None)
    return named or configs.layer_kind(config, index)


def _linears(layer: Layer, family: Architecture) -> Iterable[LinearShape]:
    """A layer's linear layers; routed experts are none of their own."""
    for rest, tensor in sorted(layer.items()):
        name = rest.removesuffix(".weight")
        if len(tensor.shape) == 2 and rest.endswith(".weight") and not set(name.split(".")) & {*family.routed}:
            out, into = tensor.shape
            yield LinearShape(name=name, out_features=out, in_features=into, bias=f"{name}.bias" in layer)


def _norms(layer: Layer, hidden_size: int) -> dict[str, Any]:
    """What is normalised in a layer, by the names of its one-dimensional weights; a mixer's own norm is narrower."""
    widths = {rest: tensor.shape[0] for rest, tensor in layer.items() if len(tensor.shape) == 1 and NORM.search(rest)}
    of_heads = {name for name in widths if QUERY_KEY_NORM.search(name)}
    whole = [name for name, width in widths.items() if name not in of_heads and width == hidden_size]
    return {
        "layer_norms": len(whole),
        "query_key_norms": bool(of_heads),
        "post_norms": any(POST_NORM.search(name) for name in whole),
    }


def _attention(
    config: Config, sizes: Dimensions, kind: LayerKind, layer: Layer, linears: tuple[LinearShape, ...]
) -> dict[str, Any]:
    """Heads and their width: the norm of a query's heads tells it of this layer, the config of all."""
    query = _width(linears, ("q_proj",)) or 0
    widths = (tensor.shape[0] for rest, tensor in layer.items() if OF_HEAD.search(rest) and len(tensor.shape) == 1)
    head_dim = next((width for width in widths if width < query and query % width == 0), sizes.head_dim)
    return {
        "num_heads": query // head_dim or sizes.num_heads,
        "num_kv_heads": (_width(linears, ("k_proj",)) or 0) // head_dim or sizes.num_kv_heads,
        "head_dim": head_dim,
        "sliding_window": configs.sliding_window(config) if kind == "sliding attention" else None,
    }


def _width(linears: tuple[LinearShape, ...], names: tuple[str, ...]) -> int | None:
    return next((shape.out_features for shape in linears if shape.name.rsplit(".", 1)[-1] in names), None)
