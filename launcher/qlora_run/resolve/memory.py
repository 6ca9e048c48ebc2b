"""The peak of a training step in closed form: what stays, plus the largest instant.

Nothing is summed that does not live at the same time. The instants are the loss at the end of a forward, the
backward of the layer where most is alive, and the optimizer step; evaluation keeps nothing for a backward and
never exceeds the loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

from qlora_core.step.spread import spread
from qlora_profiles.facts import LinearShape, MemoryEstimate, MemoryPart, ModelFacts
from qlora_run.resolve import footprint as rates
from qlora_run.resolve import weights
from qlora_run.resolve.activations import LayerCost, layer_cost
from qlora_run.resolve.footprint import Footprint
from qlora_run.resolve.loss_cost import LossCost, loss_cost
from qlora_run.resolve.setup import Setup

Instant = Literal["loss", "backward of a layer", "optimizer step"]

LENGTH_STEP = 64
"""Lengths are tried in multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The coefficients of the peak, in bytes; worked out once for a model, a setup and a device.

    ``expanded_layers`` have their weights in 16 bits, too, at ``expanded_layer_bytes`` each.
    """

    base_bytes: int
    base_name: str
    state_bytes: int
    gradient_bytes: int
    optimizer_step_bytes: int
    footprint: Footprint
    gaps_bytes: int
    gaps_block_token: int
    gaps_square: float
    gaps_tile: float
    gaps_share: float
    num_layers: int
    layer: LayerCost
    offloaded_token: int
    cast_layer_bytes: int
    casts_wait: bool
    head_gradient_bytes: int
    expanded_down_bytes: int
    expanded_widest_bytes: int
    mask_square: int
    rotary_token: int
    loss: LossCost
    graphed: bool
    expanded_layer_bytes: int
    expanded_layers: int = 0

    @property
    def staying_bytes(self) -> int:
        """What is there through a whole run, but gradients."""
        return self.base_bytes + self.state_bytes + self.expanded_layers * self.expanded_layer_bytes

    def keeping(self, layers: int) -> "Costs":
        """The same with the weights of so many layers expanded for good; of all: no room for expanding one."""
        if layers < self.num_layers:
            return replace(self, expanded_layers=layers) if layers else self
        return replace(self, expanded_layers=layers, expanded_down_bytes=0, expanded_widest_bytes=0)

    def around_blocks(self, tokens: int) -> int:
        """What is lost around the largest tensors of layers."""
        return self.gaps_block_token * tokens


def memory_costs(
    model: ModelFacts, targets: Sequence[LinearShape], setup: Setup, footprint: Footprint | None = None
) -> Costs:
    """The coefficients for a model under a setup; without ``footprint``, for a card of which nothing is known."""
    footprint = footprint or rates.footprint_of(None, setup)
    trained = weights.trained_params(model, targets, setup)
    head = 4 * model.vocab_size * model.hidden_size if setup.full else 0
    on_cpu, growing = setup.device == "cpu", setup.expandable_segments
    small = 0 if on_cpu else round(rates.SMALL_GAPS * weights.small_bytes(model, targets, setup))
    if setup.fused_adapters and not setup.fused_kernels and not on_cpu:
        small += weights.expanded_bytes(model, setup)  # its hole, between tensors of other sizes
    expanded = partial(weights.expanded_bytes, model, setup)
    if setup.backend_kernels:
        small += expanded() + rates.BACKEND_BYTES  # Unsloth's place for any expanded weight, there for good
    small += rates.INT8_COPIES * weights.expanded_bytes(model, setup) if setup.method == "qlora-8" else 0
    layer = layer_cost(model, targets, setup)
    return Costs(
        base_bytes=weights.base_bytes(model, setup),
        base_name=f"base {weights.weight_bits(setup)}-bit",
        state_bytes=weights.state_bytes(trained, setup),
        gradient_bytes=weights.gradient_bytes(trained),
        optimizer_step_bytes=_step_bytes(model, setup, trained, head),
        footprint=footprint,
        gaps_bytes=0 if on_cpu else small + round(rates.HEAD_GAPS * head) + rates.PAGE_BYTES // 2,
        gaps_block_token=0 if on_cpu else round(rates.block_gaps(setup) * layer.block_token),
        gaps_square=0.0 if on_cpu else rates.SCORE_GAPS * layer.scores_square,
        gaps_tile=0.0 if on_cpu else rates.TILE_GAPS,
        gaps_share=rates.CPU_GAPS if on_cpu else 0.0 if growing else rates.FIXED_SEGMENTS_GAPS,
        num_layers=model.num_layers,
        layer=layer,
        offloaded_token=setup.stream_bytes * model.hidden_size if setup.offload_activations else 0,
        cast_layer_bytes=weights.cast_bytes(model, targets, setup),
        casts_wait=not setup.fused_adapters and not setup.backend_kernels,
        head_gradient_bytes=head,
        expanded_down_bytes=0 if setup.backend_kernels else expanded("down_proj"),
        expanded_widest_bytes=0 if setup.backend_kernels else expanded(),
        mask_square=1 + setup.compute_bytes if setup.attention == "sdpa" else 0,
        rotary_token=2 * setup.stream_bytes * model.head_dim,
        loss=loss_cost(model, setup),
        graphed=setup.cuda_graphs,
        expanded_layer_bytes=setup.compute_bytes * weights.quantised_params(model) // model.num_layers
        if setup.can_expand
        else 0,
    )


def _step_bytes(model: ModelFacts, setup: Setup, trained: int, head_gradient: int) -> int:
    """A plain optimizer's temporaries; a tied head and embedding that add up their two gradients just before."""
    plain = trained * 4 if setup.optimizer_kernel == "plain" else 0
    return max(plain, head_gradient if model.tied_embeddings else 0)


def peak(
    costs: Costs, tokens: int, recomputed: int, budget_bytes: int | None = None, accumulating: bool = True
) -> MemoryEstimate:
    """The peak of a micro-batch of ``tokens`` tokens with ``recomputed`` layers that recompute.

    ``accumulating`` where a step may have several micro-batches: the gradients of the first are then there while
    the next is computed.
    """
    worst = _worst(costs, tokens, recomputed, accumulating)
    parts = _parts(costs, worst, tokens)
    known = costs.footprint
    staying = 0 if known.own_run else costs.staying_bytes + worst.gradients
    error = known.uncertain_share * worst.passing + rates.UNCERTAIN_STAYING * staying + known.uncertain_bytes
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
    layers recompute, a third at the last of those, when the gradients of the layers behind it exist. A trained head's
    gradient is there from the start. Graphs hold the memory of forward and backward for good, a micro-batch's
    gradients among it; all else comes on top.
    """
    kept = _kept(costs, tokens, recomputed)
    open_casts = (costs.num_layers - recomputed) * costs.cast_layer_bytes
    casts = costs.num_layers * costs.cast_layer_bytes if costs.casts_wait else open_casts  # for autocast to end
    fixed = costs.gaps_bytes + costs.footprint.workspace_bytes
    lost = fixed + costs.around_blocks(tokens) + round(costs.gaps_square * tokens**2)
    in_backward = kept + open_casts + _backward(costs, tokens, recomputed)
    before = costs.gradient_bytes if accumulating else 0
    tile_gaps = round(costs.gaps_tile * costs.loss.tile_bytes(tokens))
    if costs.graphed:
        held = costs.gradient_bytes + in_backward + costs.loss.bytes(tokens)
        yield _Worst("loss", held, lost + tile_gaps + round(costs.gaps_share * held), before)
        return
    at_loss = kept + casts + costs.loss.bytes(tokens)
    yield _Worst("loss", at_loss, lost + tile_gaps + round(costs.gaps_share * at_loss), before)
    gaps = lost + round(costs.gaps_share * in_backward)
    yield _Worst("backward of a layer", in_backward, gaps, before or costs.head_gradient_bytes)
    in_layer, coming = _again(costs, tokens) + _within(costs, tokens, True), _coming(costs, tokens, recomputed)
    at_end = _shared(costs, tokens) + costs.layer.input_token * tokens + in_layer
    gaps = lost + round(costs.gaps_share * at_end)
    of_layer = (costs.gradient_bytes - costs.head_gradient_bytes) // costs.num_layers
    if 0 < recomputed < costs.num_layers and not accumulating:
        behind = costs.num_layers - 1 - max(spread(recomputed, costs.num_layers))
        used = kept + open_casts + in_layer + coming
        used -= behind * (_open(costs, tokens) + costs.cast_layer_bytes)
        yield _Worst("backward of a layer", used, gaps, costs.head_gradient_bytes + behind * of_layer)
    yield _Worst("backward of a layer", at_end, gaps, costs.gradient_bytes - of_layer)
    if coming:
        yield _Worst("backward of a layer", at_end + coming, gaps, costs.gradient_bytes - 2 * of_layer)
    yield _Worst("optimizer step", costs.optimizer_step_bytes, fixed, costs.gradient_bytes)


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


def _kept(costs: Costs, tokens: int, recomputed: int) -> int:
    """What all layers keep until backward reaches them, and what they share."""
    layer, open_layers = costs.layer, costs.num_layers - recomputed
    of_recomputed = recomputed * (layer.input_token - costs.offloaded_token) * tokens
    on_its_way = costs.offloaded_token * tokens if recomputed else 0
    return of_recomputed + on_its_way + open_layers * _open(costs, tokens) + _shared(costs, tokens)


def _open(costs: Costs, tokens: int) -> int:
    """What a layer that does not recompute keeps."""
    return costs.layer.kept_token * tokens + costs.layer.kept_square * tokens**2


def _shared(costs: Costs, tokens: int) -> int:
    """What all layers read: rotary positions, a mask."""
    return costs.rotary_token * tokens + costs.mask_square * tokens**2


def _backward(costs: Costs, tokens: int, recomputed: int) -> int:
    """What the worst moment of backward adds while everything is kept: the norm behind the last layer, or the last
    layer itself.

    Recomputed layers are spread so that the last one is open unless all recompute: then its activations exist
    while everything else is still kept.
    """
    all_again = recomputed >= costs.num_layers
    again = _again(costs, tokens) + _coming(costs, tokens, recomputed) if all_again else 0
    return max(costs.layer.first_token * tokens, again + _within(costs, tokens, all_again))


def _coming(costs: Costs, tokens: int, recomputed: int) -> int:
    """The input that comes back from main memory while the layer behind it is in backward."""
    return costs.offloaded_token * tokens if recomputed > 1 else 0


def _again(costs: Costs, tokens: int) -> int:
    """The activations of a layer that was recomputed, beside the input that it kept."""
    layer = costs.layer
    own_token = layer.kept_token - layer.shared_token
    return own_token * tokens + layer.kept_square * tokens**2 + costs.cast_layer_bytes


def _within(costs: Costs, tokens: int, again: bool) -> int:
    """What the worst moment of a layer adds to its activations: in backward, or before that at its last product."""
    gradients, product = costs.layer.backward_token * tokens, costs.layer.product_token * tokens
    at_down = gradients - product + max(product, costs.expanded_down_bytes)
    at_widest = gradients - 4 * product + costs.expanded_widest_bytes  # the MLP's own tensors are gone, or not yet
    at_scores = costs.layer.scores_square * tokens**2 - costs.layer.scores_gone_token * tokens
    return max(at_down, at_widest, at_scores, _at_last(costs, tokens, again), costs.layer.norm_token * tokens)


def _at_last(costs: Costs, tokens: int, again: bool) -> int:
    """What is there at a layer's last product; when that is made again, the gradient of its result waits."""
    layer = costs.layer
    waiting = layer.input_token if again else 0
    if again and layer.skips_last:
        return (layer.unkept_token + waiting) * tokens
    return (layer.unkept_token + waiting + layer.result_token) * tokens + costs.expanded_down_bytes


def _parts(costs: Costs, worst: _Worst, tokens: int) -> tuple[MemoryPart, ...]:
    """The peak by component; they add up to it, so only what lives at that instant is in them."""
    of_loss = costs.loss.bytes(tokens) if worst.instant == "loss" else 0
    in_step = worst.used if worst.instant == "optimizer step" else 0
    scale, offset = costs.footprint.scale, costs.footprint.offset_bytes
    sizes = {
        costs.base_name: costs.base_bytes,
        "expanded weights": costs.expanded_layers * costs.expanded_layer_bytes,
        "adapter, gradients, optimizer": costs.state_bytes + worst.gradients + round(scale * in_step),
        "activations": round(scale * (worst.used - of_loss - in_step)),
        "loss": round(scale * of_loss),
        "kernels and context": costs.footprint.context_bytes + offset + round(scale * worst.gaps),
    }
    return tuple(MemoryPart(name=name, bytes=size) for name, size in sizes.items() if size > 0)
