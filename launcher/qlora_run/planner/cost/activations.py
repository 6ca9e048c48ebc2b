"""What one decoder layer keeps for its backward, from its shapes: bytes for each token of a micro-batch.

Legend: h hidden size, q and kv widths of queries and of keys, i width of the MLP, c bytes of a value in the
arithmetic, s of one in the residual stream. Eager modules keep float32 copies where the fused kernels of some
backends keep their input only.

What is counted is what autograd saves in the forward of transformers' layers. tests/launcher/planner/cost/
test_memory_oracle.py holds it to a trace of real layers, test_memory.py to steps measured on an H200
(tests/support/measured_h200.csv, made by bench/memory.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import asdict

from qlora_profiles.architectures import UNKNOWN, architecture_of
from qlora_profiles.facts import LayerGroup, LinearShape, ModelFacts
from qlora_profiles.layer_kinds import ATTENTION
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.weights import targets_in

SAME_INPUT: dict[str, tuple[str, ...]] = asdict(UNKNOWN.projections)
"""Linear layers that read one and the same tensor, by any family's names."""

MLP = ("mlp.", "feed_forward.")
"""How the names of linear layers begin that belong to the MLP."""

FLOAT32 = 4
"""Bytes of a float32 value."""
INDICES = 3 * 8
"""Bytes of the numbers that say which token an expert's row belongs to: three of int64, as transformers' grouped
products sort them (test_memory_oracle.py, ``mixtures``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCost:
    """Bytes per token (``_token``) and per squared token of the micro-batch (``_square``).

    Attributes:
        kept_token: what a layer that does not recompute keeps.
        rematerialized_token: what it would keep, too, were it not rematerialized in backward.
        kept_square: the same for kernels that keep a T x T mask or the scores.
        input_token: what a layer that recomputes keeps.
        shared_token: the part of ``kept_token`` that is that same input.
        scores_square: gradients of eager attention's scores,
        scores_gone_token: and what the MLP had kept, which is gone by then.
        backward_token: gradients that live together at the worst moment of a layer's backward.
        product_token: what they include that is gone while a weight is dequantized.
        unkept_token: what forward has made by the layer's last product and backward makes again.
        result_token: what that product makes, where nothing keeps it.
        skips_last: whether a layer that recomputes leaves its last product out.
        norm_token: gradients at a norm at the end of a layer, where no product is made.
        first_token: gradients at the norm behind the last layer, where backward begins.
        block_token: the largest tensors that come and go: they leave gaps in the allocator's memory.
    """

    kept_token: int
    rematerialized_token: int
    kept_square: int
    input_token: int
    shared_token: int
    scores_square: int
    scores_gone_token: int
    backward_token: int
    product_token: int
    unkept_token: int
    result_token: int
    skips_last: bool
    norm_token: int
    first_token: int
    block_token: int


def layer_cost(model: ModelFacts, group: LayerGroup, targets: Sequence[LinearShape], inputs: CostInputs) -> LayerCost:
    """The cost of one layer of a group of this model's with these inputs; ``targets`` are those of all groups."""
    hidden, inner, c = model.hidden_size, group.intermediate_size, inputs.compute_bytes
    targets = targets_in(group, targets)
    eager_16bit = not inputs.fused_kernels and c < FLOAT32
    own_copy = eager_16bit and not inputs.full  # of the input: the norm's, in float32
    made = sum(kept(model, group, inputs) for kept in (_norms, _mixer, _mlp)) + _inputs(group, targets, inputs)
    made += c * (_query_key(group) - inner) if inputs.backend_kernels else 0  # Unsloth's: kept twice, and made again
    rematerialized = c * sum(_once(targets)) if inputs.rematerialize_activations and inputs.can_rematerialize else 0
    return LayerCost(
        kept_token=made - rematerialized,
        rematerialized_token=rematerialized,
        kept_square=_square(model, group, inputs),
        input_token=inputs.stream_bytes * hidden,
        shared_token=0 if own_copy else inputs.stream_bytes * hidden,
        scores_square=_scores(model, group, inputs),
        scores_gone_token=3 * c * inner,
        backward_token=_backward(model, group, inputs),
        product_token=0 if group.experts_per_token or inputs.can_rematerialize else c * inner,
        unkept_token=c * (hidden + inner) if rematerialized else 0,
        result_token=0 if group.post_norms else inputs.stream_bytes * hidden,
        skips_last=inputs.fused_adapters and architecture_of(model.model_type).only_adds_mlp,
        norm_token=22 * hidden if group.post_norms and eager_16bit else 0,
        first_token=(24 if eager_16bit else 3 * c) * hidden,
        block_token=(FLOAT32 if inputs.method == "qlora-8" else c) * max(inner, _grouped(model, group)),
    )


def _norms(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """Norms keep their input, in float32 when they are eager; the squared means are one value a norm."""
    width = FLOAT32 if not inputs.fused_kernels else inputs.compute_bytes
    kept = (width * model.hidden_size + FLOAT32) * group.layer_norms
    if group.query_key_norms:
        kept += width * _query_key(group) + FLOAT32 * (group.num_heads + group.num_kv_heads)
    return kept + (_norm_weights(model, group, inputs) if inputs.full else 0)


def _norm_weights(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """A trained weight needs its other factor, the normalised input, in that input's format."""
    kept = inputs.stream_bytes * group.layer_norms * model.hidden_size
    if group.query_key_norms:
        width = FLOAT32 if architecture_of(model.model_type).norms_in_float32 else inputs.compute_bytes
        kept += width * _query_key(group)
    return kept


def _query_key(group: LayerGroup) -> int:
    return (group.num_heads + group.num_kv_heads) * group.head_dim


def _mixer(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """What lets tokens see each other."""
    return _attention(group, inputs) if group.kind in ATTENTION else inputs.compute_bytes * _state(model, group)


def _state(model: ModelFacts, group: LayerGroup) -> int:
    """Values for each token that a convolution or recurrence keeps, roughly: what is projected from the hidden state,
    as it was and as it went on, and what is projected back to it."""
    linears = [shape for shape in group.linears if not shape.name.startswith(MLP)]
    into = sum(shape.out_features for shape in linears if shape.in_features == model.hidden_size)
    return 2 * into + sum(shape.in_features for shape in linears if shape.out_features == model.hidden_size)


def _attention(group: LayerGroup, inputs: CostInputs) -> int:
    """Queries, keys, values and the result; some kernels want keys and values expanded to all heads."""
    query, key = group.num_heads * group.head_dim, group.num_kv_heads * group.head_dim
    expanded = query if inputs.expands_heads else key
    return inputs.compute_bytes * (query + 2 * expanded + query) + FLOAT32 * group.num_heads


def _mlp(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """Gate and up; eager modules keep the activated gate too. Down's input counts among the inputs."""
    dense = inputs.compute_bytes * (2 if inputs.fused_kernels else 3) * group.intermediate_size
    if not group.experts_per_token:
        return dense
    shared = any(shape.name.endswith("gate_proj") for shape in group.linears)
    return _experts(model, group, inputs) + (dense if shared else 0)


def _experts(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """A mixture, as transformers groups tokens by expert: for each expert that a token meets gate and up, the activated
    gate and what the expert made; its input once, and the router's probabilities."""
    for_each = inputs.compute_bytes * (3 * group.expert_size + model.hidden_size) + INDICES
    return group.experts_per_token * for_each + inputs.compute_bytes * model.hidden_size + FLOAT32 * group.num_experts


def _inputs(group: LayerGroup, targets: Sequence[LinearShape], inputs: CostInputs) -> int:
    """What the trained layers keep of what they read."""
    c = inputs.compute_bytes
    if inputs.full:
        return c * sum(_once(group.linears) if c == FLOAT32 else _cast_inputs(group.linears))
    ranks = c * inputs.lora_r * len(targets)
    if inputs.lora_dropout > 0:
        return ranks + c * sum(shape.in_features for shape in targets)  # each its own copy; masks are made again
    return ranks + c * sum(_once(targets))


def _groups(reading: Sequence[LinearShape]) -> dict[str, int]:
    """The width of each distinct input."""
    names = {shape.name.rsplit(".", 1)[-1]: shape.in_features for shape in reading}
    group_of = {name: group for group, members in SAME_INPUT.items() for name in members}
    return {group_of.get(name, name): width for name, width in names.items()}


def _once(reading: Sequence[LinearShape]) -> list[int]:
    """The same without what the output projection reads: attention keeps it anyway."""
    return [width for group, width in _groups(reading).items() if group != "output"]


def _cast_inputs(reading: Sequence[LinearShape]) -> list[int]:
    """Behind a float32 norm each trained layer casts for itself; the others read what is 16 bits already."""
    behind_norms = (*SAME_INPUT["attention"], *SAME_INPUT["mlp"])
    named = [(shape.name.rsplit(".", 1)[-1], shape.in_features) for shape in reading]
    return [width for name, width in named if name in behind_norms or name in SAME_INPUT["down"]]


def _square(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """Eager attention keeps scores and probabilities of every head, ``sdpa`` its mask as numbers."""
    if architecture_of(model.model_type).caps_scores:
        return group.num_heads * (2 * inputs.compute_bytes + FLOAT32)
    return inputs.compute_bytes if inputs.attention == "sdpa" and group.kind in ATTENTION else 0


def _scores(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """Eager attention's gradient of the probabilities, in float32 and as it came, and of the scores."""
    capped = architecture_of(model.model_type).caps_scores
    return group.num_heads * (inputs.compute_bytes + 2 * FLOAT32) if capped else 0


def _backward(model: ModelFacts, group: LayerGroup, inputs: CostInputs) -> int:
    """At the down projection: the gradient of what it read, from the base and from the adapter, and its own.

    The former is one tensor with fused adapters, but a moment later the activation's own gradients are as large,
    unless a fused activation writes them over what it kept.
    Before, in the layer's second forward, a fused gate-and-up exists three times over while PEFT adds its adapter.
    An 8-bit product quantises its input, through 16 bits and a mask of outliers.
    """
    c, hidden, inner = inputs.compute_bytes, model.hidden_size, group.intermediate_size
    if group.experts_per_token:
        return c * _in_experts_backward(model, group)
    joined = not inputs.fused_adapters and any(shape.name.endswith("gate_up_proj") for shape in group.linears)
    read = 1 if inputs.fused_adapters and inputs.fused_kernels else 2
    down = read * c * inner + (3 if joined else 1) * inputs.stream_bytes * hidden
    if inputs.method == "qlora-8":
        down = max(down, 5 * inner + 2 * c * hidden)
    return down


def _grouped(model: ModelFacts, group: LayerGroup) -> int:
    """Values for each token of the widest tensor that is sorted by expert."""
    return group.experts_per_token * max(model.hidden_size, 2 * group.expert_size)


def _in_experts_backward(model: ModelFacts, group: LayerGroup) -> int:
    """Values for each token at the worst moment of a mixture's backward: three gradients of what the experts made, or
    later, when that is gone, those of gate, up, both together, and of the activation."""
    many, hidden = group.experts_per_token, model.hidden_size
    return 2 * hidden + many * max(3 * hidden, 4 * group.expert_size - hidden)
