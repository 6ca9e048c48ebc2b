"""The dimensions of a language model, from its config.json."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qlora_profiles.architectures import Architecture, architecture_of
from qlora_profiles.errors import UserError
from qlora_profiles.layer_kinds import KIND_BY_CONFIG_WORD, LayerKind

Config = Mapping[str, Any]

TEXT_PARTS = ("text_config", "llm_config", "language_config")
"""Where a model that also sees or hears keeps the config of its language part."""


class Dimensions(NamedTuple):
    """The sizes of a decoder-only transformer."""

    model_type: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool


def text_config(config: Config) -> dict[str, Any]:
    """The language part of a config, with its family's defaults filled in."""
    part = next((config[name] for name in TEXT_PARTS if isinstance(config.get(name), Mapping)), config)
    shared = {name: config[name] for name in ("model_type", "tie_word_embeddings") if name in config}
    merged = {**shared, **part}
    return {**_family(merged).config_defaults, **merged}


def family_of(config: Config) -> Architecture:
    """What is known of the family of the language part."""
    return _family(text_config(config))


def _family(text: Config) -> Architecture:
    return architecture_of(str(text.get("model_type")))


def dimensions(config: Config, where: str) -> Dimensions:
    """The sizes that a config names.

    Raises:
        UserError: it lacks one that every decoder has.
    """
    text = text_config(config)
    missing = [k for k in ("num_hidden_layers", "hidden_size", "num_attention_heads") if not text.get(k)]
    if missing:
        raise UserError(f"{where}: its config.json names no {missing[0]}; not a language model")
    heads, hidden = text["num_attention_heads"], text["hidden_size"]
    return Dimensions(
        model_type=str(text.get("model_type", "unknown")),
        num_layers=text["num_hidden_layers"],
        hidden_size=hidden,
        intermediate_size=text.get("intermediate_size") or 4 * hidden,
        num_heads=heads,
        num_kv_heads=text.get("num_key_value_heads") or heads,
        head_dim=text.get("head_dim") or hidden // heads,
        vocab_size=text.get("vocab_size") or 0,
        tied_embeddings=bool(text.get("tie_word_embeddings", False)),
    )


def experts(config: Config) -> dict[str, int]:
    """How many experts a mixture has, how many of them a token meets, and their width."""
    text = text_config(config)
    per_token = text.get("num_experts_per_tok") or 0
    count = next((text[name] for name in family_of(config).expert_counts if text.get(name)), 0)
    if not per_token or not count:
        return {}
    size = text.get("moe_intermediate_size") or text.get("intermediate_size") or 0
    return {"num_experts": count, "experts_per_token": per_token, "expert_size": size}


def sliding_window(config: Config) -> int | None:
    """Tokens that a windowed layer sees, where the config switches windows on."""
    text = text_config(config)
    if "sliding attention" not in family_of(config).layer_kinds or not text.get("use_sliding_window", True):
        return None
    return text.get("sliding_window")


def layer_kind(config: Config, index: int) -> LayerKind:
    """The kind of a decoder layer: listed layer by layer, or by every how many of them sees all tokens."""
    text = text_config(config)
    listed = text.get("layer_types")
    if isinstance(listed, list) and index < len(listed) and listed[index] in KIND_BY_CONFIG_WORD:
        return KIND_BY_CONFIG_WORD[listed[index]]
    if not sliding_window(config) or index < (text.get("max_window_layers") or 0):
        return "attention"
    pattern = text.get("sliding_window_pattern")
    sees_all = isinstance(pattern, int) and pattern > 0 and (index + 1) % pattern == 0
    return "attention" if sees_all else "sliding attention"


def quantised(config: Config) -> str | None:
    """How the checkpoint is quantised already: ``"bitsandbytes 4-bit"``, ``"gptq"``; ``None`` when it is not."""
    entry = config.get("quantization_config") or text_config(config).get("quantization_config")
    if not isinstance(entry, Mapping):
        return None
    method = str(entry.get("quant_method") or "unknown")
    if method == "bitsandbytes" or entry.get("load_in_4bit"):
        return "bitsandbytes 4-bit" if entry.get("load_in_4bit") else "bitsandbytes 8-bit"
    return method


def own_logits(config: Config) -> bool:
    """Whether logits are more than the head's product (scaled, say), so that only the model's forward makes them."""
    text = text_config(config)
    return any(text.get(name) not in (None, 1, 1.0) for name in family_of(config).logit_scales)


def stored_dtype(config: Config) -> str | None:
    """The number format that a config says the weights are stored in."""
    text = text_config(config)
    name = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    return str(name).removeprefix("torch.") if name else None
