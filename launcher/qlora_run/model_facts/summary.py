"""From the list of a checkpoint's tensors to ``ModelFacts``."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from qlora_profiles.architectures import Architecture
from qlora_profiles.errors import UserError
from qlora_profiles.facts import LinearShape, ModelFacts
from qlora_run.model_facts import config as configs
from qlora_run.model_facts.config import Config
from qlora_run.model_facts.safetensors_header import TensorInfo, Tensors

LAYER = re.compile(r"^(?P<stack>.*?)\.?(?:layers|blocks|block|h)\.(?P<index>\d+)\.(?P<rest>.+)$")
EXPERT = re.compile(r"\.experts\.")
NORM = re.compile(r"(?:norm|ln_\w+)\w*\.weight$")
QUERY_KEY_NORM = re.compile(r"(?:^|[._])(?:q|k|query|key)_(?:layer)?norm\.weight$")
POST_NORM = re.compile(r"post_(?:feedforward|mlp)_layernorm\.weight$")
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}

Layers = dict[int, dict[str, TensorInfo]]


def summarise(
    source: str, config: Config, tensors: Tensors, *, exact: bool, fingerprint: str, file_bytes: int | None = None
) -> ModelFacts:
    """The facts of a checkpoint.

    Raises:
        UserError: no decoder layers or no embedding among the tensors.
    """
    sizes = configs.dimensions(config, source)
    family = configs.family_of(config)
    layers = _decoder_layers(tensors, sizes.num_layers, family)
    embedding = next(_weights(tensors, family.embedding, family), None)
    if not layers or embedding is None:
        raise UserError(f"{source}: its weights hold no decoder layers and embedding; not a language model")
    head = next((t for t in _weights(tensors, family.head, family) if t.shape == embedding.shape), None)
    tied = head is None or sizes.tied_embeddings
    linears = _common_linears(layers, family)
    layer_params = sum(t.params for layer in layers.values() for t in layer.values() if len(t.shape) > 1)
    head_params = 0 if tied or head is None else head.params
    total = sum(t.params for t in tensors.values()) - (head.params if head and tied else 0)
    return ModelFacts(
        source=source,
        model_type=sizes.model_type,
        exact=exact,
        num_layers=len(layers),
        hidden_size=embedding.shape[1],
        intermediate_size=_width(linears, ("gate_proj", "up_proj", "fc1")) or sizes.intermediate_size,
        num_heads=_heads(linears, "q_proj", sizes.head_dim) or sizes.num_heads,
        num_kv_heads=_heads(linears, "k_proj", sizes.head_dim) or sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=embedding.shape[0],
        tied_embeddings=tied,
        linears=linears,
        layer_linear_params=layer_params,
        embedding_params=embedding.params,
        head_params=head_params,
        other_params=total - layer_params - embedding.params - head_params,
        sliding_window=configs.sliding_window(config),
        max_positions=configs.text_config(config).get("max_position_embeddings"),
        stored_dtype=_stored_dtype(layers) if exact else configs.stored_dtype(config) or "bfloat16",
        file_bytes=file_bytes,
        quantised=configs.quantised(config),
        **_norms(layers[min(layers)]),
        own_logits=configs.own_logits(config),
        **_experts(config, tensors),
        fingerprint=fingerprint,
    )


def _experts(config: Config, tensors: Tensors) -> dict[str, Any]:
    """A mixture's numbers; a config may name experts that its checkpoint does not have."""
    return configs.experts(config) if any(map(EXPERT.search, tensors)) else {}


def fingerprint(config: Config, tensors: Tensors) -> str:
    """Identity of a checkpoint's shape: its config and its tensors' names, types and shapes; not where it lies."""
    shapes = sorted((name, t.dtype, list(t.shape)) for name, t in tensors.items())
    text = json.dumps([config, shapes], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _weights(tensors: Tensors, modules: Iterable[str], family: Architecture) -> Iterator[TensorInfo]:
    """The weights of modules with these last names, in the language part."""
    ends = tuple(f".{module}.weight" for module in modules)
    return (t for name, t in tensors.items() if f".{name}".endswith(ends) and not _beside_text(name, family))


def _beside_text(name: str, family: Architecture) -> bool:
    return any(part in name for part in family.beside_text)


def _decoder_layers(tensors: Tensors, num_layers: int, family: Architecture) -> Layers:
    """The tensors of each layer of the language part, by index and name within the layer."""
    stacks: dict[str, Layers] = defaultdict(lambda: defaultdict(dict))
    for name, tensor in tensors.items():
        match = LAYER.match(name)
        if match and not _beside_text(match["stack"], family) and int(match["index"]) < num_layers:
            stacks[match["stack"]][int(match["index"])][match["rest"]] = tensor
    whole = [layers for layers in stacks.values() if len(layers) == num_layers]
    return max(whole, key=_linear_params, default={})


def _linear_params(layers: Layers) -> int:
    return sum(t.params for layer in layers.values() for t in layer.values())


def _common_linears(layers: Layers, family: Architecture) -> tuple[LinearShape, ...]:
    """The linear layers of the kind of layer that there is most of; routed experts are no linears of their own."""
    kinds = Counter(tuple(_linears(layers[index], family)) for index in sorted(layers))
    return kinds.most_common(1)[0][0]


def _linears(layer: dict[str, TensorInfo], family: Architecture) -> Iterable[LinearShape]:
    for rest, tensor in sorted(layer.items()):
        name = rest.removesuffix(".weight")
        if len(tensor.shape) == 2 and rest.endswith(".weight") and not set(name.split(".")) & {*family.routed}:
            out, into = tensor.shape
            yield LinearShape(name=name, out_features=out, in_features=into, bias=f"{name}.bias" in layer)


def _norms(layer: dict[str, TensorInfo]) -> dict[str, Any]:
    """What is normalised in a layer, by the names of its one-dimensional weights."""
    names = [rest for rest, tensor in layer.items() if len(tensor.shape) == 1 and NORM.search(rest)]
    of_heads = [name for name in names if QUERY_KEY_NORM.search(name)]
    return {
        "layer_norms": len(names) - len(of_heads),
        "query_key_norms": bool(of_heads),
        "post_norms": any(POST_NORM.search(name) for name in names),
    }


def _width(linears: tuple[LinearShape, ...], names: tuple[str, ...]) -> int | None:
    return next((shape.out_features for shape in linears if shape.name.rsplit(".", 1)[-1] in names), None)


def _heads(linears: tuple[LinearShape, ...], name: str, head_dim: int) -> int | None:
    width = _width(linears, (name,))
    return width // head_dim if width else None


def _stored_dtype(layers: Layers) -> str:
    counts: Counter[str] = Counter()
    for layer in layers.values():
        for tensor in layer.values():
            counts[tensor.dtype] += tensor.params
    name = counts.most_common(1)[0][0]
    return DTYPES.get(name, name.lower())
