"""From the list of a checkpoint's tensors to ``ModelFacts``."""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from qlora_profiles.architectures import Architecture
from qlora_profiles.errors import UserError
from qlora_profiles.facts import ModelFacts
from qlora_run.model_facts import config as configs
from qlora_run.model_facts.config import Config
from qlora_run.model_facts.layer_groups import grouped
from qlora_run.model_facts.safetensors_header import TensorInfo, Tensors

LAYER = re.compile(r"^(?P<stack>.*?)\.?(?:layers|blocks|block|h)\.(?P<index>\d+)\.(?P<rest>.+)$")
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
    groups, order = grouped(config, sizes, layers)
    layer_params = sum(group.count * group.params for group in groups)
    head_params = 0 if tied or head is None else head.params
    total = sum(t.params for t in tensors.values()) - (head.params if head and tied else 0)
    return ModelFacts(
        source=source,
        model_type=sizes.model_type,
        exact=exact,
        hidden_size=embedding.shape[1],
        vocab_size=embedding.shape[0],
        tied_embeddings=tied,
        layers=groups,
        layer_order=order,
        embedding_params=embedding.params,
        head_params=head_params,
        other_params=total - layer_params - embedding.params - head_params,
        max_positions=configs.text_config(config).get("max_position_embeddings"),
        stored_dtype=_stored_dtype(layers) if exact else configs.stored_dtype(config) or "bfloat16",
        file_bytes=file_bytes,
        quantised=configs.quantised(config),
        own_logits=configs.own_logits(config),
        fingerprint=fingerprint,
    )


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


def _stored_dtype(layers: Layers) -> str:
    counts: Counter[str] = Counter()
    for layer in layers.values():
        for tensor in layer.values():
            counts[tensor.dtype] += tensor.params
    name = counts.most_common(1)[0][0]
    return DTYPES.get(name, name.lower())
