"""Another forward for a model's modules: put in only where it computes the same, and taken out again.

Liger's kernels need a card; here kernels in plain torch stand in their places (tests/gpu has the real ones).
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.adapted import adapted, assert_same, computed
from support.models import FAMILIES, random_examples
from support.plain_kernels import KERNELS, norm, norm_rope, rotate
from torch import Tensor
from torch.nn.functional import silu

from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import FusedLayers, LayerKernels, fuse_layers
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_profiles.architectures import architecture_of


def fused(model: Any, *choices: LayerKernels, warned: list[str] | None = None) -> FusedLayers:
    told = warned if warned is not None else []
    return fuse_layers(model.get_base_model(), choices or (KERNELS,), torch.float32, told.append)


def counts(layers: FusedLayers) -> dict[str, int]:
    return {kind: len(modules) for kind, modules in layers.replaced.items()}


NORMS = {"qwen3": 13, "qwen2": 7, "llama": 7, "gemma3_text": 19}
"""Three layers' and the last one."""


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_all_three_kinds_compute_the_same(family: str, recomputed: int) -> None:
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = computed(model)
    warned: list[str] = []
    layers = fused(model, warned=warned)
    assert warned == []
    assert counts(layers) == {"norm": NORMS[family], "activation": 3, "rotation": 3}
    assert_same(computed(model), expected, 1e-5)
    fuse_adapters(model, model.get_base_model().get_decoder(), torch.float32)
    assert_same(computed(model), expected, 1e-5)
    layers.remove()
    assert_same(computed(model), expected, 1e-5)


def _called(calls: list[str], name: str, kernel: Any) -> Any:
    def counted(*arguments: Any) -> Any:
        calls.append(name)
        return kernel(*arguments)

    return counted


def test_the_kernels_are_what_runs() -> None:
    calls: list[str] = []
    names = ("norm", "silu", "gelu_tanh", "rotate")
    model = adapted()
    fused(model, replace(KERNELS, **{name: _called(calls, name, getattr(KERNELS, name)) for name in names}))
    calls.clear()
    model(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=False)
    assert {name: calls.count(name) for name in names} == {"norm": 13, "silu": 3, "gelu_tanh": 0, "rotate": 3}


@pytest.mark.parametrize("recomputed", [0, 2])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_heads_are_normed_and_turned_at_once(family: str, recomputed: int) -> None:
    calls: list[str] = []
    names = ("norm", "rotate", "norm_rope")
    own = {"norm": norm, "rotate": rotate, "norm_rope": norm_rope}
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = computed(model)
    layers = fused(model, replace(KERNELS, **{name: _called(calls, name, own[name]) for name in names}))
    assert counts(layers) == {"norm": NORMS[family], "activation": 3, "rotation": 3}
    calls.clear()
    model(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=False)
    at_once = family in ("qwen3", "gemma3_text")
    usual = NORMS[family] - (6 if at_once else 0)
    assert [calls.count(name) for name in names] == [usual, 0 if at_once else 3, 6 if at_once else 0]
    assert_same(computed(model), expected, 1e-5)
    layers.remove()
    assert_same(computed(model), expected, 1e-5)


def test_norms_of_heads_that_are_trained_get_their_gradient() -> None:
    model = adapted()
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_norm.weight.requires_grad_(True)
    expected = computed(model)
    calls: list[str] = []
    fused(model, replace(KERNELS, norm_rope=_called(calls, "norm_rope", norm_rope)))
    assert_same(computed(model), expected, 1e-5)
    assert calls == []


def test_heads_that_come_out_otherwise_are_computed_in_two_kernels() -> None:
    model, warned = adapted(), list[str]()
    expected = computed(model)
    kernels = replace(KERNELS, norm_rope=lambda x, *rest: norm_rope(x, *rest) * 1.1)
    assert counts(fused(model, kernels, warned=warned)) == {"norm": 13, "activation": 3, "rotation": 3}
    assert len(warned) == 1
    assert warned[0].startswith("kernel for the heads of Qwen3Attention 16 (torch): its result 1 is off by")
    assert_same(computed(model), expected, 1e-5)


def broken(*arguments: Any) -> Any:
    raise RuntimeError("no compiler")


def half_turned(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return rotate(q, k, cos, -sin)


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        return silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return grad_outputs[0], grad_outputs[0]


@pytest.mark.parametrize(
    ("wrong", "kind", "word"),
    [
        ({"norm": broken}, "norm", "no compiler"),
        ({"norm": lambda x, *rest: x}, "norm", "its result is off by"),
        ({"rotate": half_turned}, "rotation", "its result 1 is off by"),
        ({"silu": _NoGradient.apply}, "activation", "its gradient 1 is off by"),
    ],
)
def test_a_kernel_that_computes_something_else_is_left_out(wrong: dict[str, Any], kind: str, word: str) -> None:
    model = adapted()
    expected = computed(model)
    warned: list[str] = []
    layers = fused(model, replace(KERNELS, **wrong), warned=warned)
    assert [name for name, count in counts(layers).items() if count == 0] == [kind]
    assert all(word in line for line in warned)
    assert len(warned) == (2 if kind == "norm" else 1)  # once for each width, not for each module
    assert_same(computed(model), expected, 1e-5)


def test_the_next_choice_takes_the_place_of_one_that_does_not_run() -> None:
    model, warned, calls = adapted(), list[str](), list[str]()
    first = replace(KERNELS, whose="the first", norm=broken)
    second = replace(KERNELS, whose="the second", norm=_called(calls, "norm", norm), silu=broken)
    expected = computed(model)
    assert counts(fused(model, first, second, warned=warned)) == {"norm": 13, "activation": 3, "rotation": 3}
    assert all("the first" in line for line in warned)
    calls.clear()
    assert_same(computed(model), expected, 1e-5)
    assert len(calls) >= 13


def test_a_kernel_is_tried_more_than_once() -> None:
    """The first launch of a kind compiles; those that follow go another way."""
    launches: list[str] = []

    def well_at_first(x: Tensor, *rest: Any) -> Tensor:
        launches.append("norm")
        return norm(x, *rest) if len(launches) == 1 else x

    warned: list[str] = []
    assert counts(fused(adapted(), replace(KERNELS, norm=well_at_first), warned=warned))["norm"] == 0
    assert "is off by" in warned[0]


def test_one_model_only() -> None:
    first, second = adapted(), adapted()
    fused(first, replace(KERNELS, norm=norm))
    assert not any("forward" in vars(module) for module in second.modules())
    assert type(first.get_base_model().model.norm) is type(second.get_base_model().model.norm)


def test_an_unknown_architecture_is_left_alone() -> None:
    model = adapted()
    model.get_base_model().config.model_type = "something_new"
    warned: list[str] = []
    assert sum(counts(fused(model, warned=warned)).values()) == 0
    assert "architecture" in warned[0]
    assert architecture_of("qwen3").layer_kernels


def test_words_are_made_as_before() -> None:
    """With a cache, one token at a time."""
    model = adapted().eval()
    prompt = torch.tensor([random_examples(1, seed=5)[0].input_ids])
    expected = model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False)
    fused(model)
    assert model.generate(input_ids=prompt, max_new_tokens=6, do_sample=False).tolist() == expected.tolist()
