"""The peak of a training step in closed form: what stays, plus the largest instant.

Nothing is summed that does not live at the same time. The instants are the loss at the end of a forward, the
backward of the layer where most is alive, and the optimizer step; evaluation keeps nothing for a backward and
never exceeds the loss. Layers of several groups add up in what they keep; of what one layer's backward takes, the
worst counts. Held to steps measured on an H200 by tests/launcher/planner/cost/test_memory.py (a median of 1%, 3% at
worst).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from qlora_profiles.facts import LinearShape, MemoryEstimate, MemoryPart, ModelFacts
from qlora_run.planner.cost import cuda_overhead, weights
from qlora_run.planner.cost.cuda_overhead import CudaOverhead
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.layer_groups import (
    GroupCosts,
    Turn,
    group_costs,
    open_bytes,
    recomputed_bytes,
    recomputing,
    turns,
    within_bytes,
)
from qlora_run.planner.cost.loss import LossCost, loss_cost

Instant = Literal["loss", "backward of a layer", "optimizer step"]

LENGTH_STEP = 64
"""Lengths are tried in multiples of so many tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The coefficients of the peak, in bytes; worked out once for a model, cost inputs and a device.

    ``order`` names the group of each layer, from the first to the last. ``staying_dequantized_bytes`` are weights in 16
    bits of layers that keep them.
    """

    base_bytes: int
    base_name: str
    state_bytes: int
    gradient_bytes: int
    optimizer_step_bytes: int
    overhead: CudaOverhead
    gaps_bytes: int
    gaps_block_token: int
    gaps_square: float
    gaps_tile: float
    gaps_share: float
    groups: tuple[GroupCosts, ...]
    order: tuple[int, ...]
    input_token: int
    first_token: int
    offloaded_token: int
    casts_wait: bool
    head_gradient_bytes: int
    mask_square: int
    rotary_token: int
    loss: LossCost
    graphed: bool
    staying_dequantized_bytes: int = 0

    @property
    def num_layers(self) -> int:
        """Decoder layers of all groups."""
        return len(self.order)

    @property
    def mixed(self) -> bool:
        """Whether layers are of several groups."""
        return len(self.groups) > 1

    @property
    def staying_bytes(self) -> int:
        """What is there through a whole run, but gradients."""
        return self.base_bytes + self.state_bytes + self.staying_dequantized_bytes

    @property
    def dequantized_layer_bytes(self) -> int:
        """Weights of one layer in 16 bits, of the largest; 0 where none can stay dequantized."""
        return max(group.dequantized_bytes for group in self.groups)

    def keeping(self, layers: int) -> "Costs":
        """The same with the weights of the first ``layers`` dequantized for good; of all: no room to dequantize one."""
        if not layers:
            return self
        staying = sum(self.groups[place].dequantized_bytes for place in self.order[:layers])
        if layers < self.num_layers:
            return replace(self, staying_dequantized_bytes=staying)
        groups = tuple(replace(group, dequantized_down_bytes=0, dequantized_widest_bytes=0) for group in self.groups)
        return replace(self, staying_dequantized_bytes=staying, groups=groups)

    def around_blocks(self, tokens: int) -> int:
        """What is lost around the largest tensors of layers."""
        return self.gaps_block_token * tokens


def memory_costs(
    model: ModelFacts, targets: Sequence[LinearShape], inputs: CostInputs, overhead: CudaOverhead | None = None
) -> Costs:
    """The coefficients for a model with these cost inputs; without ``overhead``, for a card that is not known."""
    overhead = overhead or cuda_overhead.cuda_overhead_of(None, inputs)
    trained = weights.trained_params(model, targets, inputs)
    head = 4 * model.vocab_size * model.hidden_size if inputs.full else 0
    on_cpu, growing = inputs.device == "cpu", inputs.expandable_segments
    small = 0 if on_cpu else round(cuda_overhead.SMALL_GAPS * weights.small_bytes(model, targets, inputs))
    widest = weights.dequantized_bytes(model.linears, inputs)
    if inputs.fused_adapters and not inputs.fused_kernels and not on_cpu:
        small += widest  # its hole, between tensors of other sizes
    if inputs.backend_kernels:
        small += widest + cuda_overhead.BACKEND_BYTES  # Unsloth's place for any dequantized weight, there for good
    small += cuda_overhead.INT8_COPIES * widest if inputs.method == "qlora-8" else 0
    gradients = weights.gradient_bytes(trained)
    groups, order = group_costs(model, targets, inputs, gradients - head)
    layers = [group.layer for group in groups]
    return Costs(
        base_bytes=weights.base_bytes(model, inputs),
        base_name=f"base {weights.weight_bits(inputs)}-bit",
        state_bytes=weights.state_bytes(trained, inputs),
        gradient_bytes=gradients,
        optimizer_step_bytes=_step_bytes(model, inputs, trained, head),
        overhead=overhead,
        gaps_bytes=0 if on_cpu else small + round(cuda_overhead.HEAD_GAPS * head) + cuda_overhead.PAGE_BYTES // 2,
        gaps_block_token=0
        if on_cpu
        else round(cuda_overhead.block_gaps(inputs) * max(layer.block_token for layer in layers)),
        gaps_square=0.0 if on_cpu else cuda_overhead.SCORE_GAPS * max(layer.scores_square for layer in layers),
        gaps_tile=0.0 if on_cpu else cuda_overhead.TILE_GAPS,
        gaps_share=cuda_overhead.CPU_GAPS if on_cpu else 0.0 if growing else cuda_overhead.FIXED_SEGMENTS_GAPS,
        groups=groups,
        order=order,
        input_token=layers[0].input_token,
        first_token=layers[0].first_token,
        offloaded_token=inputs.stream_bytes * model.hidden_size if inputs.offload_activations else 0,
        casts_wait=not inputs.fused_adapters and not inputs.backend_kernels,
        head_gradient_bytes=head,
        mask_square=1 + inputs.compute_bytes if inputs.attention == "sdpa" else 0,
        rotary_token=2 * inputs.stream_bytes * sum({group.head_dim for group in model.layers}),
        loss=loss_cost(model, inputs),
        graphed=inputs.cuda_graphs,
    )


def _step_bytes(model: ModelFacts, inputs: CostInputs, trained: int, head_gradient: int) -> int:
    """A plain optimizer's temporaries; a tied head and embedding that add up their two gradients just before."""
    plain = trained * 4 if inputs.optimizer_kernel == "plain" else 0
    return max(plain, head_gradient if model.tied_embeddings else 0)


def peak(
    costs: Costs, tokens: int, recomputed: int, budget_bytes: int | None = None, accumulating: bool = True
) -> MemoryEstimate:
    """The peak, as the driver sees it, of a micro-batch of ``tokens`` tokens with ``recomputed`` layers that recompute.

    ``accumulating`` where a step may have several micro-batches: the gradients of the first are then there while
    the next is computed.
    """
    worst = _worst(costs, tokens, recomputed, accumulating)
    parts = _parts(costs, worst, tokens)
    known = costs.overhead
    staying = 0 if known.own_run else costs.staying_bytes + worst.gradients
    error = known.uncertain_share * worst.passing + cuda_overhead.UNCERTAIN_STAYING * staying + known.uncertain_bytes
    return MemoryEstimate(
        parts=parts,
        instant=worst.instant,
        peak_bytes=sum(part.bytes for part in parts),
        error_bytes=round(error),
        budget_bytes=budget_bytes,
        calibrated=known.measured,
    )


def passing_bytes(costs: Costs, tokens: int, recomputed: int, accumulating: bool = True) -> int:
    """The part of the peak that comes and goes in a step, as predicted before any measurement."""
    return _worst(costs, tokens, recomputed, accumulating).passing


class _Worst(NamedTuple):
    """The instant of the peak: tensors that pass, what is lost around them, gradients that exist by then."""

    instant: Instant
    used: int
    gaps: int
    gradients: int

    @property
    def passing(self) -> int:
        return self.used + self.gaps


def _worst(costs: Costs, tokens: int, recomputed: int, accumulating: bool) -> _Worst:
    """The largest instant."""
    return max(_instants(costs, tokens, recomputed, accumulating), key=lambda worst: worst.passing + worst.gradients)


def _instants(costs: Costs, tokens: int, recomputed: int, accumulating: bool) -> Iterator[_Worst]:
    """What passes, what is lost around it, and the gradients that exist, at each instant.

    Backward has two: at its start all layers' activations are there, at its end all other gradients; and where some
    layers recompute, or are of another group, one at the last of those, when what the layers behind it kept is gone
    and their gradients exist. Recomputed layers are spread so that the last is open unless all recompute. A trained
    head's gradient is there from the start. Graphs hold the memory of forward and backward for good, a micro-batch's
    gradients among it; all else comes on top.
    """
    at_layer, *others = turns(costs.order, recomputed)
    kept, opened = _kept(costs, tokens, recomputed), _opened(costs, recomputed)
    open_casts = sum(count * group.cast_bytes for count, group in zip(opened, costs.groups, strict=True))
    casts = sum(g.count * g.cast_bytes for g in costs.groups) if costs.casts_wait else open_casts  # for autocast to end
    fixed = costs.gaps_bytes + costs.overhead.workspace_bytes
    lost = fixed + costs.around_blocks(tokens) + round(costs.gaps_square * tokens**2)
    at_norm = costs.first_token * tokens  # behind the last layer
    in_backward = kept + open_casts + max(at_norm, _in_layer(costs, tokens, recomputed, at_layer))
    before = costs.gradient_bytes if accumulating else 0
    tile_gaps = round(costs.gaps_tile * costs.loss.tile_bytes(tokens))
    # with one group and all gradients there from the start, nothing later exceeds the start
    later = [_at(costs, tokens, recomputed, turn, kept + open_casts) for turn in others if not before or costs.mixed]
    if costs.graphed:
        held = costs.gradient_bytes + max(in_backward, *(used for _, used, _ in later), 0) + costs.loss.bytes(tokens)
        yield _Worst("loss", held, lost + tile_gaps + round(costs.gaps_share * held), before)
        return
    at_loss = kept + casts + costs.loss.bytes(tokens)
    yield _Worst("loss", at_loss, lost + tile_gaps + round(costs.gaps_share * at_loss), before)
    gaps = lost + round(costs.gaps_share * in_backward)
    yield _Worst("backward of a layer", in_backward, gaps, before or costs.head_gradient_bytes)
    for group, used, gradients in later:
        gaps = lost + _share_at_end(costs, tokens, group)
        yield _Worst("backward of a layer", used, gaps, before or costs.head_gradient_bytes + gradients)
    yield from _at_first_layer(costs, tokens, recomputed, lost)
    yield _Worst("optimizer step", costs.optimizer_step_bytes, fixed, costs.gradient_bytes)


def _in_layer(costs: Costs, tokens: int, recomputed: int, turn: Turn) -> int:
    """What a layer's turn in backward adds while its own activations are kept, or made again."""
    group = costs.groups[turn.place]
    again = recomputed_bytes(group, tokens) + _coming(costs, tokens, recomputed) if turn.again else 0
    return again + within_bytes(group, tokens, turn.again)


def _at(costs: Costs, tokens: int, recomputed: int, turn: Turn, kept: int) -> tuple[GroupCosts, int, int]:
    """A later turn: its group, what there is of ``kept`` and of its own, and the gradients of the layers behind it."""
    used = kept + _in_layer(costs, tokens, recomputed, turn)
    used -= sum(turn.recomputed_behind) * (costs.input_token - costs.offloaded_token) * tokens
    gradients = 0
    for group, opened, closed in zip(costs.groups, turn.opened_behind, turn.recomputed_behind, strict=True):
        used -= opened * (open_bytes(group, tokens) + group.cast_bytes)
        gradients += (opened + closed) * group.gradient_bytes
    return costs.groups[turn.place], used, gradients


def _at_first_layer(costs: Costs, tokens: int, recomputed: int, lost: int) -> Iterator[_Worst]:
    """The end of backward, when all gradients but the layer's own exist, as if it were a layer of each group."""
    least = min(group.gradient_bytes for group in costs.groups)
    coming = _coming(costs, tokens, recomputed)
    for group in costs.groups:
        at_end, gaps = _at_end(costs, tokens, group), lost + _share_at_end(costs, tokens, group)
        yield _Worst("backward of a layer", at_end, gaps, costs.gradient_bytes - group.gradient_bytes)
        if coming:
            others = costs.gradient_bytes - group.gradient_bytes - least
            yield _Worst("backward of a layer", at_end + coming, gaps, others)


def _at_end(costs: Costs, tokens: int, group: GroupCosts) -> int:
    in_layer = recomputed_bytes(group, tokens) + within_bytes(group, tokens, True)
    return _shared(costs, tokens) + costs.input_token * tokens + in_layer


def _share_at_end(costs: Costs, tokens: int, group: GroupCosts) -> int:
    """What segments of fixed size lose there."""
    return round(costs.gaps_share * _at_end(costs, tokens, group))


def smallest_peak(costs: Costs, tokens: int, budget_bytes: int | None = None) -> MemoryEstimate:
    """The least memory that a micro-batch can take: every layer recomputes, or all but the last.

    The last layer is the first in backward: recomputing it may save nothing.
    """
    every = peak(costs, tokens, costs.num_layers, budget_bytes)
    but_one = peak(costs, tokens, max(0, costs.num_layers - 1), budget_bytes)
    return min(every, but_one, key=lambda estimate: estimate.peak_bytes)


def longest_that_fits(costs: Costs, budget_bytes: int | None, most_tokens: int) -> int:
    """The longest example (a multiple of 64, at most ``most_tokens``) that fits with every saving in use, or 0."""
    low, high = 0, most_tokens // LENGTH_STEP
    while low < high:
        middle = (low + high + 1) // 2
        fits = smallest_peak(costs, middle * LENGTH_STEP, budget_bytes).fits
        low, high = (middle, high) if fits else (low, middle - 1)
    return low * LENGTH_STEP


def _opened(costs: Costs, recomputed: int) -> list[int]:
    """How many layers of each group do not recompute."""
    again = recomputing(costs.order, recomputed)
    return [group.count - count for group, count in zip(costs.groups, again, strict=True)]


def _kept(costs: Costs, tokens: int, recomputed: int) -> int:
    """What all layers keep until backward reaches them, and what they share."""
    of_recomputed = recomputed * (costs.input_token - costs.offloaded_token) * tokens
    on_its_way = costs.offloaded_token * tokens if recomputed else 0
    opened = zip(_opened(costs, recomputed), costs.groups, strict=True)
    of_opened = sum(count * open_bytes(group, tokens) for count, group in opened)
    return of_recomputed + on_its_way + of_opened + _shared(costs, tokens)


def _shared(costs: Costs, tokens: int) -> int:
    """What all layers read: rotary positions, a mask."""
    return costs.rotary_token * tokens + costs.mask_square * tokens**2


def _coming(costs: Costs, tokens: int, recomputed: int) -> int:
    """The input that comes back from main memory while the layer behind it is in backward."""
    return costs.offloaded_token * tokens if recomputed > 1 else 0


def _parts(costs: Costs, worst: _Worst, tokens: int) -> tuple[MemoryPart, ...]:
    """The peak by component; they add up to it, so only what lives at that instant is in them."""
    of_loss = costs.loss.bytes(tokens) if worst.instant == "loss" else 0
    in_step = worst.used if worst.instant == "optimizer step" else 0
    scale, offset = costs.overhead.scale, costs.overhead.offset_bytes
    sizes = {
        costs.base_name: costs.base_bytes,
        "dequantized weights": costs.staying_dequantized_bytes,
        "adapter, gradients, optimizer": costs.state_bytes + worst.gradients + round(scale * in_step),
        "activations": round(scale * (worst.used - of_loss - in_step)),
        "loss": round(scale * of_loss),
        "kernels and context": costs.overhead.context_bytes + offset + round(scale * worst.gaps),
    }
    return tuple(MemoryPart(name=name, bytes=size) for name, size in sizes.items() if size > 0)
