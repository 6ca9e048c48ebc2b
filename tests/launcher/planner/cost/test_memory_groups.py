"""The memory and time models where layers are of several shapes: against a count, and what must hold of them."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from support.measured import H200
from support.memory_oracle import step_bytes
from support.planning_facts import card_report, data_of
from support.setups import SETUP

from qlora_profiles.facts import LayerGroup, ModelFacts
from qlora_run.model_facts import discover_targets
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.summary import summarise
from qlora_run.planner.cost.cuda_overhead import CudaOverhead
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import Costs, _worst, memory_costs
from qlora_run.planner.cost.speed import rates, step_seconds, work_of_step
from qlora_run.planner.cost.weights import base_bytes

SHAPE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 768,
    "intermediate_size": 1280,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
}
NARROW, WIDE = 1280, 5120
TOKENS = 1024


def with_mlps(*widths: int) -> ModelFacts:
    """A decoder whose layers have MLPs of these widths."""
    parts = [tensors_from_config(SHAPE | {"intermediate_size": width}, "mixed") for width in widths]
    tensors = {
        name: parts[int(name.split(".")[2])][name] if ".layers." in name else tensor
        for name, tensor in parts[0].items()
    }
    return summarise("mixed", SHAPE, tensors, exact=True, fingerprint="")


def costs_of(model: ModelFacts, **changes: Any) -> Costs:
    footprint = CudaOverhead(context_bytes=0)
    return memory_costs(model, discover_targets(model, ("all-linear",)), CostInputs(**SETUP | changes), footprint)


def averaged(model: ModelFacts) -> ModelFacts:
    """The same with the most common layer in place of every other, as if there were no groups."""
    most = max(model.layers, key=lambda group: group.count)
    return msgspec.structs.replace(model, layers=(with_count(most, model.num_layers),), layer_order=())


def with_count(group: LayerGroup, count: int) -> LayerGroup:
    return msgspec.structs.replace(group, count=count)


MIXED = {
    "the last is wide": (NARROW,) * 5 + (WIDE,),
    "the first is wide": (WIDE,) + (NARROW,) * 5,
    "a wide one behind a narrow one": (NARROW, WIDE) * 3,
    "the last two but one are wide": (NARROW, NARROW, NARROW, WIDE, WIDE, NARROW),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("recomputed", [0, 3, 5, 6])
@pytest.mark.parametrize("which", MIXED)
def test_as_many_bytes_as_are_counted(which: str, recomputed: int, fused: bool) -> None:
    """To a few percent, wherever the wide layers are; with the most common layer for all there would be too few."""
    widths = MIXED[which]
    how: dict[str, Any] = {"tokens": TOKENS, "recomputed": recomputed, "method": "qlora-4", "fused": fused}
    counted = step_bytes(SHAPE, mlp_widths=widths, **how).passing
    model = with_mlps(*widths)
    worst = _worst(costs_of(model, fused_adapters=fused), TOKENS, recomputed, accumulating=False)
    assert worst.used + worst.gradients == pytest.approx(counted, rel=0.03)
    flat = _worst(costs_of(averaged(model), fused_adapters=fused), TOKENS, recomputed, accumulating=False)
    assert flat.used + flat.gradients <= worst.used + worst.gradients


def in_tensors(model: ModelFacts, recomputed: int) -> int:
    return _worst(costs_of(model), TOKENS, recomputed, accumulating=True).used


def test_what_layers_keep_is_their_sum() -> None:
    peaks = [in_tensors(with_mlps(*(WIDE,) * wide, *(NARROW,) * (6 - wide)), 0) for wide in range(6)]
    steps = [more - fewer for fewer, more in pairwise(peaks)]
    narrow, wide = (costs_of(with_mlps(*(width,) * 6)).groups[0] for width in (NARROW, WIDE))
    assert set(steps) == {
        (wide.layer.kept_token - narrow.layer.kept_token) * TOKENS + wide.cast_bytes - narrow.cast_bytes
    }


@pytest.mark.parametrize("place", range(6))
def test_where_all_recompute_the_widest_layer_decides(place: int) -> None:
    """Wherever it is, it takes what it takes in a model that has no others, within what layers keep by then."""
    widths = [NARROW] * 6
    widths[place] = WIDE
    mixed, narrow, wide = (in_tensors(with_mlps(*each), 6) for each in (widths, [NARROW] * 6, [WIDE] * 6))
    inputs = (5 - place) * 2 * SHAPE["hidden_size"] * TOKENS
    assert mixed >= wide - inputs
    assert narrow < mixed <= wide


def test_which_layers_recompute_counts() -> None:
    """Three of six are the first, third and fifth: with those narrow, the wide ones keep everything."""
    open_wide, open_narrow = (
        in_tensors(with_mlps(*(NARROW, WIDE) * 3), 3),
        in_tensors(with_mlps(*(WIDE, NARROW) * 3), 3),
    )
    assert open_wide > open_narrow


def test_weights_of_every_shape_are_counted() -> None:
    mixed, narrow, wide = with_mlps(*(WIDE,) * 2, *(NARROW,) * 4), with_mlps(*(NARROW,) * 6), with_mlps(*(WIDE,) * 6)
    setups = [CostInputs(**SETUP | {"method": method}) for method in ("lora", "qlora-4", "full")]
    for setup in setups:
        sizes = [base_bytes(model, setup) for model in (mixed, narrow, wide)]
        assert 3 * sizes[0] == pytest.approx(2 * sizes[1] + sizes[2], abs=8)
    assert base_bytes(mixed, setups[0]) == 2 * mixed.params


def test_weights_that_stay_dequantized_are_those_of_the_first_layers() -> None:
    costs = costs_of(with_mlps(WIDE, *(NARROW,) * 5), fused_adapters=True)
    sizes = [costs.keeping(count).staying_expanded_bytes for count in range(7)]
    each = [more - fewer for fewer, more in pairwise(sizes)]
    assert each[0] == costs.expanded_layer_bytes > each[1]
    assert len(set(each[1:])) == 1
    assert sizes[6] == 2 * with_mlps(WIDE, *(NARROW,) * 5).linear_params


def test_groups_that_cost_the_same_are_no_groups() -> None:
    """Layers with and without a window: another kind, the same shapes, the same numbers."""
    model = with_mlps(*(NARROW,) * 6)
    one = model.layers[0]
    sliding = msgspec.structs.replace(one, kind="sliding attention", sliding_window=64)
    two = msgspec.structs.replace(
        model, layers=(with_count(sliding, 4), with_count(one, 2)), layer_order=(0, 0, 1, 0, 0, 1)
    )
    assert costs_of(two) == costs_of(model)
    assert seconds(two) == seconds(model)


def seconds(model: ModelFacts) -> float:
    setup = CostInputs(**SETUP)
    work = work_of_step(model, data_of(), setup, costs_of(model), 8, 2048)
    return step_seconds(work, rates(card_report(gpus=(H200,)), H200, setup), 4096, 3)


def test_time_is_summed_over_groups() -> None:
    times = [seconds(with_mlps(*(WIDE,) * wide, *(NARROW,) * (6 - wide))) for wide in range(7)]
    assert all(fewer < more for fewer, more in pairwise(times))
    assert times[3] == pytest.approx((times[0] + times[6]) / 2, rel=0.02)
