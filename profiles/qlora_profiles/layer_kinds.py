"""The kinds of decoder layers: what configs call each, and which modules tell it in a checkpoint.

A layer of a new kind is one entry here first; families (:mod:`qlora_profiles.architectures`) and groups of layers
(:mod:`qlora_profiles.facts`) speak of kinds by these names.
"""

from typing import Literal

from msgspec import Struct

LayerKind = Literal[
    "attention", "sliding attention", "chunked attention", "linear attention", "convolution", "recurrence"
]
"""How a decoder layer lets tokens see each other."""


class KindNames(Struct, frozen=True, kw_only=True):
    """How a kind of layer is told, and what it does.

    Attributes:
        config_words: entries of ``layer_types`` in config.json, as transformers 5.17 knows them
            (configuration_utils.py: ``ALLOWED_ATTN_LAYER_TYPES``, and the older ``attention`` and ``mamba``).
        modules: names of modules that stand in such a layer where others have ``self_attn``.
        compares: whether each token is compared with others; the rest carry a state from token to token.
    """

    config_words: tuple[str, ...]
    modules: tuple[str, ...] = ()
    compares: bool = False


LAYER_KINDS: dict[LayerKind, KindNames] = {
    "attention": KindNames(config_words=("full_attention", "attention"), compares=True),
    "sliding attention": KindNames(config_words=("sliding_attention",), compares=True),
    "chunked attention": KindNames(config_words=("chunked_attention",), compares=True),
    "linear attention": KindNames(config_words=("linear_attention",), modules=("linear_attn",)),
    "convolution": KindNames(config_words=("conv",), modules=("conv", "short_conv")),
    "recurrence": KindNames(config_words=("mamba",), modules=("mamba",)),
}

ATTENTION: tuple[LayerKind, ...] = tuple(kind for kind, names in LAYER_KINDS.items() if names.compares)
"""Kinds whose layers compare each token with others."""
KIND_BY_CONFIG_WORD: dict[str, LayerKind] = {
    word: kind for kind, names in LAYER_KINDS.items() for word in names.config_words
}
KIND_BY_MODULE: dict[str, LayerKind] = {module: kind for kind, names in LAYER_KINDS.items() for module in names.modules}
