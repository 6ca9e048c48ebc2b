"""What is known of a model and of a data set before anything is loaded."""

import hashlib
from typing import Literal

from msgspec import Struct

from qlora_profiles.layer_kinds import LayerKind


class LinearShape(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A linear layer inside one decoder layer: its weight is (out_features, in_features), as torch stores it."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False

    @property
    def params(self) -> int:
        """Number of values in the weight."""
        return self.out_features * self.in_features


class LayerGroup(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Decoder layers that are alike: how many they are, and the shapes of one of them, in values.

    ``params`` are those of a layer's weights of two dimensions and more, experts among them; ``linears`` are the linear
    layers, routed experts not. A layer without attention has 0 heads; ``sliding_window`` is in tokens. ``layer_norms``
    counts norms over the hidden size, ``post_norms`` says that the last of them is over what the MLP made. In a mixture
    each token meets ``experts_per_token`` experts of width ``expert_size``, chosen among ``num_experts``; 0 where there
    are none.
    """

    kind: LayerKind
    count: int
    linears: tuple[LinearShape, ...]
    params: int
    intermediate_size: int
    num_heads: int = 0
    num_kv_heads: int = 0
    head_dim: int = 0
    sliding_window: int | None = None
    layer_norms: int = 2
    query_key_norms: bool = False
    post_norms: bool = False
    num_experts: int = 0
    experts_per_token: int = 0
    expert_size: int = 0

    @property
    def linear_params(self) -> int:
        """Values in the weights of one layer's linear layers."""
        return min(sum(shape.params for shape in self.linears), self.params)


class ModelFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model's shape. Sizes are in values (``params``) unless the name says bytes.

    ``layers`` are the decoder's, alike ones together; ``layer_order`` names each layer's group by its place there, and
    is empty where all are alike or the order is not known: then they stand group after group.
    ``other_params`` is everything that is neither in the layers' weights nor the embedding nor an untied head.
    ``exact`` is true when the numbers come from the weights' own headers and not from config.json alone;
    ``own_logits`` says that only the model's own forward can make its logits. ``fingerprint`` is of the shape,
    ``contents`` are digests of what the files hold, by part; empty where they were not on this disk.
    """

    source: str
    model_type: str
    exact: bool
    hidden_size: int
    vocab_size: int
    tied_embeddings: bool
    layers: tuple[LayerGroup, ...]
    layer_order: tuple[int, ...] = ()
    embedding_params: int
    head_params: int
    other_params: int
    max_positions: int | None = None
    stored_dtype: str = "bfloat16"
    file_bytes: int | None = None
    quantised: str | None = None
    own_logits: bool = False
    fingerprint: str = ""
    contents: dict[str, str] = {}

    @property
    def num_layers(self) -> int:
        """Decoder layers of all groups."""
        return sum(group.count for group in self.layers)

    @property
    def group_of_each(self) -> tuple[int, ...]:
        """The place in ``layers`` of every decoder layer's group, from the first layer to the last."""
        return self.layer_order or tuple(at for at, group in enumerate(self.layers) for _ in range(group.count))

    @property
    def linears(self) -> tuple[LinearShape, ...]:
        """The linear layers that decoder layers have: those of the first group, then what others have besides."""
        return tuple(dict.fromkeys(shape for group in self.layers for shape in group.linears))

    @property
    def layer_linear_params(self) -> int:
        """Values in all weights of all decoder layers."""
        return sum(group.count * group.params for group in self.layers)

    @property
    def linear_params(self) -> int:
        """Values in the weights of all linear layers of the decoder; of a mixture's experts none."""
        return sum(group.count * group.linear_params for group in self.layers)

    @property
    def head_dim(self) -> int:
        """Width of an attention head, the widest of all layers'."""
        return max((group.head_dim for group in self.layers), default=0)

    @property
    def experts_per_token(self) -> int:
        """Experts that a token meets in a layer, the most of all layers; 0 in a model without any."""
        return max((group.experts_per_token for group in self.layers), default=0)

    @property
    def params(self) -> int:
        """Values in the whole model; a tied head counts once."""
        return self.layer_linear_params + self.embedding_params + self.head_params + self.other_params

    @property
    def met_linear_params(self) -> int:
        """Values of the layers' weights that one token meets: of a mixture, not those of other experts.

        An expert has three matrices of hidden_size x expert_size: gate, up and down.
        """
        unmet = sum(
            3 * group.count * self.hidden_size * group.expert_size * (group.num_experts - group.experts_per_token)
            for group in self.layers
        )
        return self.layer_linear_params - unmet

    @property
    def name(self) -> str:
        """The last part of the folder or hub id."""
        return self.source.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]


class SourceFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the files that the data comes from: what it is, and how many of its rows can be used.

    ``path`` is as it was written in the recipe, ``fingerprint`` of the content alone. ``share`` is the fraction or the
    number of its rows that is taken, where not all are.
    """

    path: str
    fingerprint: str
    file_format: str
    row_shape: str
    rows: int
    rows_rejected: int
    share: int | float | None = None


class DataFacts(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set as this model's tokenizer sees it: its sources, and all of their rows together.

    Lengths are in tokens, before cutting.
    ``length_quantiles`` are the 0, 10, ... 100th percentiles of the training rows' lengths.
    ``rows_dropped`` counts rows whose supervised tokens were all cut away. ``counted_rows`` says in how many rows
    tokens were counted where it is not in all: the longest row is among them, the rest is estimated from them.
    ``template_digest`` is of the text of the template that renders them.
    ``learned`` says by which template, and what of a row. ``warnings`` are what nobody wants to be learned and is
    not refused; ``notes`` what is good to know.
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
    warnings: tuple[str, ...] = ()
    learned: str = ""
    notes: tuple[str, ...] = ()
    template_digest: str = ""

    @property
    def path(self) -> str:
        """Where the data comes from, for a person to read."""
        return ", ".join(source.path for source in self.sources)

    @property
    def fingerprint(self) -> str:
        """Identity of all content: of a single whole source its own, else that of the list of theirs with shares."""
        if len(self.sources) == 1 and self.sources[0].share is None:
            return self.sources[0].fingerprint
        each = [f"{source.fingerprint} {source.share}" for source in self.sources]
        return hashlib.sha256("\n".join(each).encode("utf-8")).hexdigest()


class MemoryPart(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One component of the peak, in bytes of device memory."""

    name: str
    bytes: int


class MemoryEstimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The predicted peak: what stays, plus the largest transient instant.

    ``error_bytes`` is how far the true peak may lie from ``peak_bytes`` on either side. ``budget_bytes`` is what the
    run may take; ``None`` where nothing limits it. ``calibrated`` is true where runs on this machine were measured.
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
    """What a card reaches at most: measured in about a second (the core's ``train/device_benchmark.py``), and what a
    speed prediction stands on.

    ``flops`` of a large matrix product in the run's 16-bit format, ``copy_bytes`` read plus written by a copy, both
    in a second; ``launch_seconds`` is the host's time to start one small kernel.
    """

    flops: float
    copy_bytes: float
    launch_seconds: float


class TimeEstimate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the run may take, in seconds; ``step_seconds`` of a mean optimizer step. ``basis`` says where the speed
    comes from, in words.

    ``measured_scale`` is what runs on this machine took over what was predicted for them; it is in the seconds.
    """

    steps: int
    step_seconds: float
    seconds_low: float
    seconds_high: float
    basis: str
    measured_scale: float | None = None
