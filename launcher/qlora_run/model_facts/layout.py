"""The tensors of a model of the Llama family, worked out from its config alone."""

from collections.abc import Iterator

from qlora_profiles.errors import UserError
from qlora_run.model_facts.config import Config, Dimensions, dimensions, text_config
from qlora_run.model_facts.safetensors_header import TensorInfo

QKV_BIASED = ("qwen2", "qwen2_moe")
QK_NORMED = ("qwen3", "qwen3_moe", "gemma3_text")
FOUR_NORMS = ("gemma2", "gemma3_text")
FUSED = ("phi3",)
EXPERTS = ("qwen3_moe", "mixtral")
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "smollm3")
KNOWN_TYPES = (*PLAIN, *FOUR_NORMS, *FUSED, *EXPERTS)


def tensors_from_config(config: Config, where: str) -> dict[str, TensorInfo]:
    """The tensors that a checkpoint of this config holds.

    Raises:
        UserError: an architecture whose layout is not known.
    """
    sizes = dimensions(config, where)
    if sizes.model_type not in KNOWN_TYPES:
        raise UserError(
            f"{where}: the shape of a {sizes.model_type} model cannot be told without its weights",
            "download it first, then name its folder",
        )
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (sizes.vocab_size, sizes.hidden_size)}
    for index in range(sizes.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in _layer(sizes, config)}
    shapes["model.norm.weight"] = (sizes.hidden_size,)
    if not sizes.tied_embeddings:
        shapes["lm_head.weight"] = (sizes.vocab_size, sizes.hidden_size)
    return {name: TensorInfo("BF16", shape) for name, shape in shapes.items()}


def _layer(sizes: Dimensions, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes inside one decoder layer."""
    yield from _attention(sizes, config)
    yield from _experts(sizes, config) if sizes.model_type in EXPERTS else _mlp(sizes)
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"] if sizes.model_type in FOUR_NORMS else []
    yield from ((f"{norm}.weight", (sizes.hidden_size,)) for norm in norms)


def _attention(sizes: Dimensions, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    apart = {"q_proj": query, "k_proj": key, "v_proj": key}
    rows = {"qkv_proj": query + 2 * key} if sizes.model_type in FUSED else apart
    biased = sizes.model_type in QKV_BIASED or bool(text_config(config).get("attention_bias"))
    for name, out in rows.items():
        yield f"self_attn.{name}.weight", (out, sizes.hidden_size)
        if biased:
            yield f"self_attn.{name}.bias", (out,)
    yield "self_attn.o_proj.weight", (sizes.hidden_size, query)
    if sizes.model_type in QK_NORMED:
        yield "self_attn.q_norm.weight", (sizes.head_dim,)
        yield "self_attn.k_norm.weight", (sizes.head_dim,)


def _mlp(sizes: Dimensions) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    rows = {"gate_up_proj": 2 * inner} if sizes.model_type in FUSED else {"gate_proj": inner, "up_proj": inner}
    yield from ((f"mlp.{name}.weight", (out, hidden)) for name, out in rows.items())
    yield "mlp.down_proj.weight", (hidden, inner)


def _experts(sizes: Dimensions, config: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    text = text_config(config)
    count = text.get("num_experts") or text.get("num_local_experts") or 1
    inner = text.get("moe_intermediate_size") or sizes.intermediate_size
    yield "mlp.gate.weight", (count, sizes.hidden_size)
    yield "mlp.experts.gate_up_proj", (count, 2 * inner, sizes.hidden_size)
    yield "mlp.experts.down_proj", (count, sizes.hidden_size, inner)
