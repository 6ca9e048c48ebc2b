"""The tensors of a model of a listed family, worked out from its config alone."""

from collections.abc import Iterable, Iterator, Sequence

from qlora_profiles.architectures import ARCHITECTURES, Projections
from qlora_profiles.errors import UserError
from qlora_run.model_facts.config import Config, Dimensions, dimensions, family_of, text_config
from qlora_run.model_facts.safetensors_header import TensorInfo


def tensors_from_config(config: Config, where: str) -> dict[str, TensorInfo]:
    """The tensors that a checkpoint of this config holds.

    Raises:
        UserError: an architecture whose layout is not known.
    """
    sizes = dimensions(config, where)
    if sizes.model_type not in ARCHITECTURES:
        raise UserError(
            f"{where}: the shape of a {sizes.model_type} model cannot be told without its weights",
            "download it first, then name its folder",
        )
    family = family_of(config)
    embedding, table = f"{family.decoder}.{family.embedding[0]}.weight", (sizes.vocab_size, sizes.hidden_size)
    shapes: dict[str, tuple[int, ...]] = {embedding: table}
    for index in range(sizes.num_layers):
        shapes |= {f"{family.decoder}.layers.{index}.{name}": shape for name, shape in _layer(sizes, config)}
    shapes[f"{family.decoder}.norm.weight"] = (sizes.hidden_size,)
    if not sizes.tied_embeddings:
        shapes[f"{family.head[0]}.weight"] = table
    return {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}


def _layer(sizes: Dimensions, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes inside one decoder layer."""
    yield from _attention(sizes, config)
    family = family_of(config)
    yield from _experts(sizes, config) if family.expert_counts else _mlp(sizes, family.projections)
    yield from ((f"{norm}.weight", (sizes.hidden_size,)) for norm in family.layer_norms)


def _attention(sizes: Dimensions, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    family = family_of(config)
    biased = family.qkv_bias or bool(text_config(config).get("attention_bias"))
    for name, out in _rows(family.projections.attention, (query, key, key)):
        yield f"self_attn.{name}.weight", (out, sizes.hidden_size)
        if biased:
            yield f"self_attn.{name}.bias", (out,)
    yield from ((f"self_attn.{name}.weight", (sizes.hidden_size, query)) for name in family.projections.output)
    if family.query_key_norms:
        yield "self_attn.q_norm.weight", (sizes.head_dim,)
        yield "self_attn.k_norm.weight", (sizes.head_dim,)


def _mlp(sizes: Dimensions, projections: Projections) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    yield from ((f"mlp.{name}.weight", (out, hidden)) for name, out in _rows(projections.mlp, (inner, inner)))
    yield from ((f"mlp.{name}.weight", (hidden, inner)) for name in projections.down)


def _rows(names: Sequence[str], widths: Sequence[int]) -> Iterable[tuple[str, int]]:
    """Each layer and its width: one for each of ``widths``, or all of them in one layer."""
    return zip(names, widths if len(names) == len(widths) else (sum(widths),), strict=True)


def _experts(sizes: Dimensions, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    text = text_config(config)
    count = next((text[name] for name in family_of(config).expert_counts if text.get(name)), 1)
    inner = text.get("moe_intermediate_size") or sizes.intermediate_size
    yield "mlp.gate.weight", (count, sizes.hidden_size)
    yield "mlp.experts.gate_up_proj", (count, 2 * inner, sizes.hidden_size)
    yield "mlp.experts.down_proj", (count, sizes.hidden_size, inner)
