"""What one decoder layer takes of memory, for each group of layers that are alike, and which layers recompute."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from qlora_core.execution.layer_choice import choose_layers
from qlora_profiles.facts import LayerGroup, LinearShape, ModelFacts
from qlora_run.planner.cost import weights
from qlora_run.planner.cost.activations import LayerCost, layer_cost
from qlora_run.planner.cost.inputs import CostInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCosts:
    """What each of ``count`` layers that are alike takes, in bytes.

    ``cast_bytes`` are copies of its trained weights in the arithmetic's format, ``gradient_bytes`` its share of the
    gradients; ``dequantized_bytes`` its weights in 16 bits, ``dequantized_down_bytes`` the last of them alone, and
    ``dequantized_widest_bytes`` the widest.
    """

    count: int
    layer: LayerCost
    cast_bytes: int
    gradient_bytes: int
    dequantized_bytes: int
    dequantized_down_bytes: int
    dequantized_widest_bytes: int


def group_costs(
    model: ModelFacts, targets: Sequence[LinearShape], inputs: CostInputs, gradient_bytes: int
) -> tuple[tuple[GroupCosts, ...], tuple[int, ...]]:
    """The groups whose layers cost different amounts, and the group of each layer, from the first to the last.

    ``gradient_bytes`` are those of the model but for its head; what is no layer's is shared out among all of them.
    """
    own = [weights.gradient_bytes(weights.trained_in_layer(group, targets, inputs)) for group in model.layers]
    rest = gradient_bytes - sum(group.count * size for group, size in zip(model.layers, own, strict=True))
    sizes = [size + rest // model.num_layers for size in own]
    each = [_of_layer(model, group, targets, inputs, size) for group, size in zip(model.layers, sizes, strict=True)]
    unlike = list(dict.fromkeys(each))
    order = tuple(unlike.index(each[place]) for place in model.group_of_each)
    return tuple(replace(cost, count=order.count(place)) for place, cost in enumerate(unlike)), order


def _of_layer(
    model: ModelFacts, group: LayerGroup, targets: Sequence[LinearShape], inputs: CostInputs, gradient_bytes: int
) -> GroupCosts:
    """The costs of a single layer."""
    linears = () if inputs.backend_kernels else group.linears
    return GroupCosts(
        count=1,
        layer=layer_cost(model, group, targets, inputs),
        cast_bytes=weights.cast_bytes(group, targets, inputs),
        gradient_bytes=gradient_bytes,
        dequantized_bytes=inputs.compute_bytes * group.linear_params if inputs.can_stay_dequantized else 0,
        dequantized_down_bytes=weights.dequantized_bytes(linears, inputs, "down_proj"),
        dequantized_widest_bytes=weights.dequantized_bytes(linears, inputs),
    )


class Turn(NamedTuple):
    """A layer's turn in backward: its group, whether it recomputes, and how many of each group are behind it."""

    place: int
    again: bool
    opened_behind: tuple[int, ...]
    recomputed_behind: tuple[int, ...]


@lru_cache(maxsize=4096)
def turns(order: tuple[int, ...], recomputed: int) -> list[Turn]:
    """The last layer's turn, then those of the last layer of each group that recomputes, and that does not."""
    chosen, found = choose_layers(min(recomputed, len(order)), len(order)), dict[tuple[int, bool], Turn]()
    behind: dict[bool, Counter[int]] = {False: Counter(), True: Counter()}
    places = range(max(order) + 1)
    for index in reversed(range(len(order))):
        place, again = order[index], index in chosen
        opened, closed = (tuple(behind[flag][at] for at in places) for flag in (False, True))
        found.setdefault((place, again), Turn(place, again, opened, closed))
        behind[again][place] += 1
    return list(found.values())


@lru_cache(maxsize=4096)
def recomputing(order: tuple[int, ...], count: int) -> tuple[int, ...]:
    """How many layers of each group recompute where ``count`` of all do, which the step spreads evenly over them."""
    chosen = Counter(order[index] for index in choose_layers(min(count, len(order)), len(order)))
    return tuple(chosen[place] for place in range(max(order) + 1))


def open_bytes(group: GroupCosts, tokens: int) -> int:
    """What a layer that does not recompute keeps."""
    return group.layer.kept_token * tokens + group.layer.kept_square * tokens**2


def recomputed_bytes(group: GroupCosts, tokens: int) -> int:
    """The activations of a layer that was recomputed, beside the input that it kept."""
    layer = group.layer
    own_token = layer.kept_token - layer.shared_token
    return own_token * tokens + layer.kept_square * tokens**2 + group.cast_bytes


def within_bytes(group: GroupCosts, tokens: int, again: bool) -> int:
    """What the worst moment of a layer adds to its activations: in backward, or before that at its last product."""
    layer = group.layer
    gradients, product = layer.backward_token * tokens, layer.product_token * tokens
    at_down = gradients - product + max(product, group.dequantized_down_bytes)
    at_widest = gradients - 4 * product + group.dequantized_widest_bytes  # the MLP's own tensors are gone, or not yet
    at_scores = layer.scores_square * tokens**2 - layer.scores_gone_token * tokens
    return max(at_down, at_widest, at_scores, _at_last(group, tokens, again), layer.norm_token * tokens)


def _at_last(group: GroupCosts, tokens: int, again: bool) -> int:
    """What is there at a layer's last product; when that is made again, the gradient of its result waits."""
    layer = group.layer
    waiting = layer.input_token if again else 0
    if again and layer.skips_last:
        return (layer.unkept_token + waiting) * tokens
    return (layer.unkept_token + waiting + layer.result_token) * tokens + group.dequantized_down_bytes
