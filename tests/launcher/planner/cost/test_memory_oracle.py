"""The closed form of the peak against a count of every tensor that the step really makes."""

import random
from typing import Any

import pytest
import torch
from support.memory_oracle import FAKE_EXPANDING, FAKE_VARLEN, step_bytes
from support.setups import SETUP

from qlora_profiles.architectures import architecture_of
from qlora_run.model_facts import discover_targets
from qlora_run.model_facts.layout import tensors_from_config
from qlora_run.model_facts.summary import summarise
from qlora_run.planner.cost.cuda_overhead import CudaOverhead
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import Costs, _worst, memory_costs, passing_bytes, peak

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128, "num_attention_heads": 8, "num_key_value_heads": 4},
    "qwen2": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "llama": {"num_attention_heads": 8, "num_key_value_heads": 8},
    "gemma3_text": {
        "head_dim": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * 3,
    },
    "phi3": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
COMMON = {
    "hidden_size": 768,
    "intermediate_size": 2560,
    "num_hidden_layers": 3,
    "vocab_size": 4096,
    "tie_word_embeddings": True,
}
TOKENS = 1024
BARE = CudaOverhead(context_bytes=0)


def costs_of(shape: dict[str, Any], **changes: Any) -> Costs:
    facts = summarise("oracle", shape, tensors_from_config(shape, "oracle"), exact=True, fingerprint="")
    return memory_costs(facts, discover_targets(facts, ("all-linear",)), CostInputs(**(SETUP | changes)), BARE)


def tensors_bytes(costs: Costs, recomputed: int, tokens: int = TOKENS) -> int:
    """What passes in tensors: not the gaps between them, which a CPU run of fakes does not have either."""
    gaps = costs.gaps_bytes + costs.around_blocks(tokens) + costs.gaps_tile * costs.loss.tile_bytes(tokens)
    parts = {part.name: part.bytes for part in peak(costs, tokens, recomputed, accumulating=False).parts}
    if "loss" not in parts:
        gaps -= costs.gaps_tile * costs.loss.tile_bytes(tokens)
    return passing_bytes(costs, tokens, recomputed, accumulating=False) - round(gaps)


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("family", SHAPES)
def test_4_bit_layers(family: str, recomputed: int) -> None:
    shape = {"model_type": family, **COMMON, **SHAPES[family]}
    counted = step_bytes(shape, tokens=TOKENS, recomputed=recomputed, method="qlora-4")
    assert tensors_bytes(costs_of(shape), recomputed) == pytest.approx(counted.passing, rel=0.035)


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("family", SHAPES)
def test_4_bit_layers_with_fused_adapters(family: str, recomputed: int) -> None:
    shape = {"model_type": family, **COMMON, **SHAPES[family]}
    counted = step_bytes(shape, tokens=TOKENS, recomputed=recomputed, method="qlora-4", fused=True)
    predicted = tensors_bytes(costs_of(shape, fused_adapters=True), recomputed)
    assert predicted == pytest.approx(counted.passing, rel=0.03)


@pytest.mark.parametrize("tokens", [64, 128])
@pytest.mark.parametrize("fused", [False, True])
def test_short_examples_whose_gradients_are_the_most_of_it(fused: bool, tokens: int) -> None:
    """Where every layer recomputes, memory is fullest at the end of backward, when all gradients are there."""
    shape = {"model_type": "qwen3", **COMMON, **SHAPES["qwen3"], "num_hidden_layers": 12}
    counted = step_bytes(shape, tokens=tokens, recomputed=12, method="qlora-4", fused=fused)
    costs = costs_of(shape, fused_adapters=fused)
    estimate = peak(costs, tokens, 12, accumulating=False)
    gaps = costs.gaps_bytes + costs.around_blocks(tokens)
    predicted = estimate.peak_bytes - costs.base_bytes - costs.state_bytes - gaps
    assert costs.gradient_bytes > 0.5 * counted.passing
    assert predicted == pytest.approx(counted.passing, rel=0.03)


def random_shape(draw: random.Random) -> dict[str, Any]:
    """A decoder whose proportions are those that models have: an MLP of 2.5 to 4 times the hidden size, queries of once
    or twice."""
    family = draw.choice(sorted(SHAPES))
    hidden, width = draw.choice((512, 768, 1024, 1536, 2048)), draw.choice((64, 128))
    wide = draw.choice((1, 2)) if family in ("qwen3", "gemma3_text") else 1
    heads, layers = hidden * wide // width, draw.randint(4, 6)
    shape = {"model_type": family, **COMMON, **SHAPES[family], "hidden_size": hidden, "head_dim": width}
    shape |= {"num_attention_heads": heads, "num_hidden_layers": layers, "vocab_size": draw.choice((1000, 8000, 32000))}
    shape["num_key_value_heads"] = draw.choice([count for count in (1, 2, 4, 8) if heads % count == 0])
    shape["intermediate_size"] = 64 * round(draw.uniform(2.5, 4) * hidden / 64)
    shape["tie_word_embeddings"] = draw.random() < 0.5
    return shape | ({"layer_types": ["full_attention"] * layers} if "layer_types" in shape else {})


@pytest.mark.parametrize("seed", range(50))
def test_random_shapes(seed: int) -> None:
    """Within 1% of all memory: what stays, and most that passes and gradients take together."""
    draw = random.Random(seed)
    shape = random_shape(draw)
    tokens, recomputed = draw.choice((128, 256, 512, 1024)), draw.randint(0, shape["num_hidden_layers"])
    method, fused = draw.choice(("lora", "qlora-4")), draw.random() < 0.5
    layers = fused and architecture_of(shape["model_type"]).layer_kernels and draw.random() < 0.8
    rematerialize = layers and draw.random() < 0.6
    kernels: dict[str, Any] = {"fused_layers": layers, "rematerialize": rematerialize, "fused": fused}
    counted = step_bytes(shape, tokens=tokens, recomputed=recomputed, method=method, **kernels)
    setup = {"fused_adapters": fused, "fused_kernels": layers, "rematerialize_activations": rematerialize}
    costs = costs_of(shape, method=method, **setup)
    worst = _worst(costs, tokens, recomputed, accumulating=False)
    staying = costs.base_bytes + costs.state_bytes
    assert worst.used + worst.gradients + staying == pytest.approx(counted.passing + staying, rel=0.01)


@pytest.mark.parametrize("rematerialize", [False, True])
@pytest.mark.parametrize("recomputed", [0, 1, 3])
@pytest.mark.parametrize("family", sorted(name for name in SHAPES if architecture_of(name).layer_kernels))
def test_fused_layers(family: str, recomputed: int, rematerialize: bool) -> None:
    shape = {"model_type": family, **COMMON, **SHAPES[family]}
    how: dict[str, Any] = {"tokens": TOKENS, "recomputed": recomputed, "method": "qlora-4", "fused": True}
    counted = step_bytes(shape, fused_layers=True, rematerialize=rematerialize, **how)
    setup = {"fused_adapters": True, "fused_kernels": True, "rematerialize_activations": rematerialize}
    assert tensors_bytes(costs_of(shape, **setup), recomputed) == pytest.approx(counted.passing, rel=0.02)


@pytest.mark.parametrize("tokens", [TOKENS, 4 * TOKENS])
@pytest.mark.parametrize("recomputed", [4, 7, 8])
def test_inputs_in_main_memory(recomputed: int, tokens: int) -> None:
    """One is on the card, and while a layer is in backward the next one."""
    shape = {"model_type": "qwen3", **COMMON, **SHAPES["qwen3"], "num_hidden_layers": 8}
    how: dict[str, Any] = {"tokens": tokens, "recomputed": recomputed, "offload": True}
    counted = step_bytes(shape, method="qlora-4", fused=True, **how).passing
    counted -= 2 * shape["hidden_size"] * tokens  # the first, which the count alone makes a leaf, stays
    worst = _worst(costs_of(shape, fused_adapters=True, offload_activations=True), tokens, recomputed, False)
    assert worst.used + worst.gradients == pytest.approx(counted, rel=0.02)


MIXTURES: dict[str, dict[str, Any]] = {
    "few wide experts": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 768},
    "many narrow ones": {"num_experts": 16, "num_experts_per_tok": 8, "moe_intermediate_size": 256},
    "wide and many": {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 768},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 1024},
}


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts(name: str, recomputed: int) -> None:
    shape = {"model_type": "qwen3_moe", **COMMON, **SHAPES["qwen3"], **MIXTURES[name]}
    counted = step_bytes(shape, tokens=TOKENS, recomputed=recomputed, method="qlora-4")
    assert tensors_bytes(costs_of(shape), recomputed) == pytest.approx(counted.passing, rel=0.05)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "16-bit base": ({}, {"method": "lora"}),
    "heads expanded": ({"attention": FAKE_EXPANDING}, {"method": "lora", "expands_heads": True}),
    "8-bit base": ({"method": "qlora-8"}, {"method": "qlora-8"}),
    "16-bit base, fused adapters": ({"fused": True}, {"method": "lora", "fused_adapters": True}),
    "float32": ({"dtype": torch.float32}, {"method": "lora", "compute_dtype": "float32"}),
    "dropout": ({"dropout": 0.1}, {"method": "lora", "lora_dropout": 0.1, "device": "cpu"}),
    "mask": ({"attention": "sdpa"}, {"method": "lora", "attention": "sdpa", "expands_heads": True}),
    "float32 with a mask": (
        {"attention": "sdpa", "dtype": torch.float32},
        {"attention": "sdpa", "expands_heads": True, "method": "lora", "compute_dtype": "float32"},
    ),
}


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_other_setups(case: str, recomputed: int) -> None:
    shape = {"model_type": "qwen3", **COMMON, **SHAPES["qwen3"]}
    counted_with, predicted_with = CASES[case]
    counted = step_bytes(shape, tokens=TOKENS, recomputed=recomputed, **({"attention": FAKE_VARLEN} | counted_with))
    assert tensors_bytes(costs_of(shape, **predicted_with), recomputed) == pytest.approx(counted.passing, rel=0.05)


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
def test_all_weights_trained(family: str) -> None:
    """Where activations and the loss are the peak; gradients that grow meanwhile are counted apart."""
    shape = {"model_type": family, **COMMON, **SHAPES[family], "vocab_size": 512}
    counted = step_bytes(shape, tokens=4 * TOKENS, recomputed=0, method="full")
    costs = costs_of(shape, method="full")
    assert tensors_bytes(costs, 0, 4 * TOKENS) == pytest.approx(counted.passing, rel=0.05)


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_the_gaps_that_growing_segments_leave(family: str, recomputed: int) -> None:
    shape = {"model_type": family, **COMMON, **SHAPES[family], "vocab_size": 32_000}
    tokens = 8 * TOKENS
    counted = step_bytes(shape, tokens=tokens, recomputed=recomputed, steps=2)
    costs = costs_of(shape, method="lora")
    estimate = peak(costs, tokens, recomputed, accumulating=False)
    assert estimate.peak_bytes - costs.state_bytes * 2 // 3 == pytest.approx(counted.reserved, rel=0.07)
