"""What is known of a model and of a data set before anything is loaded."""

import hashlib
from typing import Literal

from msgspec import Struct


class LinearShape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A linear layer inside one decoder layer: ``weight`` is (out_features, in_features)."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False

    @property
    def params(self) -> int:
        """Number of values in the weight."""
        return self.out_features * self.in_features


ADD_THEIR_MLP = ("llama", "mistral", "phi3", "qwen2", "qwen3", "smollm3")
"""Architectures whose layers do nothing with what their MLP made but add it to what they had: no backward reads it."""
EXPERTS_AND_ROUTERS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "shared_expert_gate")
"""Names of layers in a mixture that belong to its experts and routers, or that PEFT takes for those and would adapt
as a whole. In such a model "all linear layers" are the others, those that every token meets."""


class ModelFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's shape. Sizes are in values (``params``) unless the name says bytes.

    ``linears`` are those of one decoder layer, ``layer_linear_params`` their sum over all layers;
    ``other_params`` is everything that is neither them, the embedding nor an untied head.
    ``exact`` is true when the numbers come from the weights' own headers and not from config.json alone.
    ``layer_norms`` counts a layer's norms over the hidden size, ``post_norms`` says that the last of them is over
    what the MLP made; ``own_logits`` that only the model's own forward can make its logits. In a mixture each token
    meets ``experts_per_token`` experts of width ``expert_size``, chosen among ``num_experts``; 0 where there are none.
    """

    source: str
    model_type: str
    exact: bool
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tied_embeddings: bool
    linears: tuple[LinearShape, ...]
    layer_linear_params: int
    embedding_params: int
    head_params: int
    other_params: int
    sliding_window: int | None = None
    max_positions: int | None = None
    stored_dtype: str = "bfloat16"
    file_bytes: int | None = None
    quantised: str | None = None
    layer_norms: int = 2
    query_key_norms: bool = False
    post_norms: bool = False
    own_logits: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0
    fingerprint: str = ""

    @property
    def params(self) -> int:
        """Values in the whole model; a tied head counts once."""
        return self.layer_linear_params + self.embedding_params + self.head_params + self.other_params

    @property
    def met_linear_params(self) -> int:
        """Values of the layers' linear weights that one token meets: of a mixture, not those of other experts."""
        experts = 3 * self.num_layers * self.hidden_size * self.expert_size
        return self.layer_linear_params - experts * (self.num_experts - self.experts_per_token)

    @property
    def name(self) -> str:
        """The last part of the folder or hub id."""
        return self.source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


class SourceFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the files that the data comes from: what it is, and how many of its rows can be used.

    ``path`` is as it was written in the recipe, ``fingerprint`` of the content alone.
    """

    path: str
    fingerprint: str
    file_format: str
    row_shape: str
    rows: int
    rows_rejected: int


class DataFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set as this model's tokenizer sees it: its sources, and all of their rows together.

    Lengths are in tokens, before cutting.
    ``length_quantiles`` are the 0, 10, ... 100th percentiles of the training rows' lengths.
    ``rows_dropped`` counts rows whose supervised tokens were all cut away. ``counted_rows`` says in how many rows
    tokens were counted where it is not in all: the longest row is among them, the rest is estimated from them.
    """

    sources: tuple[SourceFacts, ...]
    rows: int
    train_rows: int
    held_out_rows: int
    rows_rejected: int
    rows_cut: int
    rows_dropped: int
    longest_tokens: int
    mean_tokens: float
    mean_supervised_tokens: float
    length_quantiles: tuple[int, ...]
    template: str
    stop_token: str
    exact: bool = True
    counted_rows: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where the data comes from, for a person to read."""
        return ", ".join(source.path for source in self.sources)

    @property
    def fingerprint(self) -> str:
        """Identity of all content: of a single source its own, else that of the list of theirs."""
        each = [source.fingerprint for source in self.sources]
        return each[0] if len(each) == 1 else hashlib.sha256("\n".join(each).encode("utf-8")).hexdigest()


class MemoryPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One component of the peak, in bytes of device memory."""

    name: str
    bytes: int


class MemoryEstimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The predicted peak: what stays, plus the largest transient instant.

    ``budget_bytes`` is what the run may take; ``None`` where nothing limits it. ``calibrated`` is true where runs
    on this machine were measured.
    """

    parts: tuple[MemoryPart, ...]
    instant: Literal["loss", "backward of a layer", "optimizer step", "evaluation"]
    peak_bytes: int
    error_bytes: int
    budget_bytes: int | None = None
    calibrated: bool = False

    @property
    def fits(self) -> bool:
        """True when the peak and its error bar stay inside the budget."""
        return self.budget_bytes is None or self.peak_bytes + self.error_bytes <= self.budget_bytes

    @property
    def close(self) -> bool:
        """True when only a measurement can tell: the budget lies inside of the error bar."""
        return not self.fits and self.peak_bytes - self.error_bytes <= (self.budget_bytes or 0)


class Ceilings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a card reaches at most: measured in about a second, and what a speed prediction stands on.

    ``flops`` of a large matrix product in the run's 16-bit format, ``copy_bytes`` read plus written by a copy, both
    in a second; ``launch_seconds`` is the host's time to start one small kernel.
    """

    flops: float
    copy_bytes: float
    launch_seconds: float


class TimeEstimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the run may take. ``basis`` says where the speed comes from.

    ``measured_scale`` is what runs on this machine took over what was predicted for them; it is in the seconds.
    """

    steps: int
    step_seconds: float
    seconds_low: float
    seconds_high: float
    basis: str
    measured_scale: float | None = None
