"""One descriptor for each model family: the only place that knows a family by its name.

A family is a ``model_type`` of config.json. Planner, kernels, loading, adapters and templates ask ``architecture_of``
and read fields; none of them compares a ``model_type``. What is claimed was read from transformers 5.17
(models/FAMILY/configuration_FAMILY.py and modeling_FAMILY.py), and ``unsloth`` from Unsloth 2026.10.9.

A new family is one entry in ``ARCHITECTURES``, and tests/profiles/test_architectures.py holds each of its claims
against transformers' code. A layer of a new kind (one that carries state, say) is an entry of
:mod:`qlora_profiles.layer_kinds` first: then whoever hands it the borders of sequences reads its name here. A fact of
a new sort is a field here whose default claims nothing, together with its first reader.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

from msgspec import Struct, field
from msgspec.structs import astuple, replace

from qlora_profiles.layer_kinds import LayerKind

IN_FLOAT32 = "gemma"
"""Liger's word for norms that multiply with their weight before they go back to 16 bits (``casting_mode`` in
liger_kernel/ops/rms_norm.py)."""


class NormStyle(Struct, frozen=True):
    """How the norms over the hidden size and over heads are computed.

    Attributes:
        offset: what is added to the weight.
        casting: where 16 bits become 32, in Liger's words: ``llama`` multiplies with the weight after it went back to
            16 bits, ``gemma`` (``IN_FLOAT32``) before.
        overwrites: whether nothing but linear layers reads what a layer's norms make, so that their backward may
            overwrite the gradient that it is given.
    """

    offset: float = 0.0
    casting: Literal["llama", "gemma"] = "llama"
    overwrites: bool = True


class Projections(Struct, frozen=True):
    """The last names of a decoder layer's linear layers, by the tensor that they read together.

    Attributes:
        attention: what reads the first norm: queries, keys and values, apart or as one.
        output: what reads attention's result.
        mlp: what reads the norm before the MLP: gate and up, apart or as one; without a gate up alone.
        down: what reads the activated product.
    """

    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    output: tuple[str, ...] = ("o_proj",)
    mlp: tuple[str, ...] = ("gate_proj", "up_proj")
    down: tuple[str, ...] = ("down_proj",)

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, in the order in which a token meets them."""
        return (*self.attention, *self.output, *self.mlp, *self.down)


WINDOWED: tuple[LayerKind, ...] = ("attention", "sliding attention")
"""Kinds of a family whose layers may see a window of tokens only, each or some of them."""
TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
EXPERTS_AND_ROUTERS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "shared_expert_gate")
"""Last names of a mixture's routers and experts."""


class Architecture(Struct, frozen=True, kw_only=True):
    """What the product has to know of a family beyond a model's config and tensors.

    The defaults are a dense decoder with Llama's names; claims that make something faster have to be made.

    Attributes:
        decoder: path of the stack of text layers in the model that ``AutoModelForCausalLM`` makes; ``None``: ask it.
        embedding: last names of the module that holds the embedding; one of them.
        head: the same of the layer that makes logits, where it is not the embedding itself.
        beside_text: parts of names in a checkpoint that belong to other senses than text. They count as weights, but no
            layer of theirs is a decoder's layer.
        config_defaults: what config.json may leave out, because the family's code has it. ``sliding_window_pattern``:
            of so many layers the last sees all tokens.
        layer_kinds: the kinds of layers that a config may ask for; each says, too, how the borders of sequences laid
            end to end reach such a layer. Both of today's get them as attention does (``kernels.attention``):
            cumulative lengths, or positions that begin anew.
        projections: names of the linear layers.
        qkv_bias: whether queries, keys and values have a bias whatever the config says.
        query_key_norms: whether heads of queries and keys are normalised.
        score_cap: the config's name of a cap on attention's scores. Only eager attention computes one.
        layer_norms: names of a layer's norms over the hidden size.
        norm_style: how its norms are computed; ``None``: not known.
        only_adds_mlp: whether a layer is known to do nothing with what its MLP made but add it to what it had: no
            backward reads it.
        expert_counts: the config's names of the number of experts, the first that is set counts; none in a dense
            family.
        routed: parts of tensors' names that say that not every token meets them, or that they choose who does.
        never_adapted: in a mixture, last names of layers that belong to experts and routers, or that PEFT takes for
            those and would adapt as a whole. There "all linear layers" are the others, those that every token meets.
        left_alone: last names of layers whose weight alone is handed to a kernel: an adapter on one would be learned
            and never computed, so PEFT refuses it.
        logit_scales: the config's names of what scales logits. Where one is set, only the model's own forward makes
            them.
        logit_cap: the config's name of a cap on logits (by tanh).
        template: the chat template of ours (``data.chat.template_families``) for a tokenizer that has none of its own
            but this one's tokens; ``None`` where the family's models have many: any whose tokens are there.
        layer_kernels: whether norms, rotations and activations are computed by our kernels and Liger's, all three:
            the memory model counts on all.
        unsloth: whether Unsloth has a forward of its own for it; others it computes with transformers' code.
    """

    decoder: str | None = "model"
    embedding: tuple[str, ...] = ("embed_tokens",)
    head: tuple[str, ...] = ("lm_head",)
    beside_text: tuple[str, ...] = ("vision", "visual", "image", "audio", "speech")
    config_defaults: Mapping[str, Any] = field(default_factory=dict)
    layer_kinds: tuple[LayerKind, ...] = ("attention",)
    projections: Projections = Projections()
    qkv_bias: bool = False
    query_key_norms: bool = False
    score_cap: str | None = None
    layer_norms: tuple[str, ...] = TWO_NORMS
    norm_style: NormStyle | None = NormStyle()
    only_adds_mlp: bool = False
    expert_counts: tuple[str, ...] = ()
    routed: tuple[str, ...] = ("experts", "gate", "router", "shared_expert_gate")
    never_adapted: tuple[str, ...] = EXPERTS_AND_ROUTERS
    left_alone: tuple[str, ...] = ()
    logit_scales: tuple[str, ...] = ()
    logit_cap: str | None = None
    template: str | None = None
    layer_kernels: bool = False
    unsloth: bool = False

    @property
    def caps_scores(self) -> bool:
        """Whether its models cap their attention scores, as their family's defaults do."""
        return bool(self.score_cap and self.config_defaults.get(self.score_cap))

    @property
    def caps_logits(self) -> bool:
        """Whether its models cap their logits, as their family's defaults do."""
        return bool(self.logit_cap and self.config_defaults.get(self.logit_cap))

    @property
    def norms_in_float32(self) -> bool:
        """Whether its norms multiply with their weight before they go back to 16 bits."""
        return self.norm_style is not None and self.norm_style.casting == IN_FLOAT32


_LLAMA = Architecture(only_adds_mlp=True, layer_kernels=True, unsloth=True)
_WINDOWED = replace(_LLAMA, layer_kinds=WINDOWED)
_QWEN = replace(_WINDOWED, template="chatml")
_MIXTURE = Architecture(
    layer_kinds=WINDOWED, norm_style=NormStyle(overwrites=False), expert_counts=("num_experts", "num_local_experts")
)
_GEMMA = Architecture(
    config_defaults={
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "tie_word_embeddings": True,
    },
    norm_style=NormStyle(offset=1.0, casting="gemma"),
    template="gemma",
    layer_kernels=True,
    unsloth=True,
)
_GEMMA2_DEFAULTS = {**_GEMMA.config_defaults, "num_attention_heads": 8, "num_key_value_heads": 4}
_GEMMA2 = replace(
    _GEMMA,
    config_defaults={
        **_GEMMA2_DEFAULTS,
        "sliding_window_pattern": 2,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    layer_kinds=WINDOWED,
    score_cap="attn_logit_softcapping",
    layer_norms=FOUR_NORMS,
    norm_style=NormStyle(offset=1.0, casting="gemma", overwrites=False),
    logit_cap="final_logit_softcapping",
    unsloth=False,
)
_GEMMA3 = replace(
    _GEMMA2,
    config_defaults={**_GEMMA2_DEFAULTS, "sliding_window_pattern": 6, "vocab_size": 262208},
    query_key_norms=True,
)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _WINDOWED,
    "qwen2": replace(_QWEN, qkv_bias=True),
    "qwen3": replace(_QWEN, query_key_norms=True),
    "smollm3": Architecture(layer_kinds=WINDOWED, only_adds_mlp=True, template="chatml"),
    "granite": Architecture(logit_scales=("logits_scaling",)),
    "phi3": Architecture(
        layer_kinds=WINDOWED,
        projections=Projections(attention=("qkv_proj",), mlp=("gate_up_proj",)),
        only_adds_mlp=True,
        template="phi",
    ),
    "mixtral": _MIXTURE,
    "qwen3_moe": replace(_MIXTURE, query_key_norms=True, template="chatml"),
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3": replace(_GEMMA3, decoder="model.language_model", logit_cap=None),
}
"""By ``model_type``. One that also sees or hears has its text part's entry, with the decoder where it lies in it."""


def _all_projections() -> Projections:
    """Every name that a listed family uses: no two mean different things by one."""
    by_input = zip(*(astuple(family.projections) for family in ARCHITECTURES.values()), strict=True)
    return Projections(*(tuple(dict.fromkeys(chain.from_iterable(names))) for names in by_input))


UNKNOWN = Architecture(
    decoder=None,
    embedding=("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings"),
    head=("lm_head", "output", "embed_out"),
    layer_kinds=WINDOWED,
    projections=_all_projections(),
    score_cap="attn_logit_softcapping",
    layer_norms=(),
    norm_style=None,
    expert_counts=("num_experts", "num_local_experts", "n_routed_experts"),
    logit_scales=("logit_scale", "logits_scaling", "output_multiplier"),
    logit_cap="final_logit_softcapping",
)
"""A family that is not listed: names as many families have them, and no claim that a wrong step could follow from."""
RECURRENT = dict.fromkeys(
    ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), replace(UNKNOWN, left_alone=("out_proj", "conv1d"))
)
"""Not listed, but for what PEFT (0.21, tuners_utils.py: ``_check_lora_target_modules_mamba``) refuses to adapt."""


def architecture_of(*model_types: str) -> Architecture:
    """What is known of a family; of one that is not listed, nothing that is not usual.

    A model that also sees or hears has two, its own and its text part's: the first that is listed counts.
    """
    known = ARCHITECTURES | RECURRENT
    return next((known[each] for each in model_types if each in known), UNKNOWN)
