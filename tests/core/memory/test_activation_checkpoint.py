"""Our own checkpoint of a layer: the gradient of torch's, from a first forward that nobody recorded."""

import gc
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from support.adapted import adapted, assert_same, computed
from torch import Tensor, nn

from qlora_core.memory.activation_checkpoint import NotATensor, OnDevice, checkpoint, in_first_pass, in_recomputing_pass
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers


class Layer(nn.Module):
    """Adds what it makes to what it was given, and writes down how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 6)
        self.seen: list[tuple[bool, bool, bool, torch.dtype]] = []

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        made = self.inside(x).tanh() * scale
        self.seen.append((in_first_pass(), in_recomputing_pass(), torch.is_grad_enabled(), made.dtype))
        result: Tensor = x + made
        return result


def through(layer: Layer, x: Tensor, **more: Any) -> Tensor:
    return checkpoint(partial(layer, **more), x, tuple(layer.parameters()), OnDevice())


def test_the_first_pass_is_not_recorded_and_the_second_is() -> None:
    layer, x = Layer(), torch.randn(4, 6, requires_grad=True)
    through(layer, x, scale=2.0).square().sum().backward()
    assert layer.seen == [(True, False, False, torch.float32), (False, True, True, torch.float32)]
    got = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    layer(x, 2.0).square().sum().backward()
    for ours, plain in zip(got, [x.grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


def test_gradients_reach_what_is_trained_though_the_input_needs_none() -> None:
    layer, x = Layer(), torch.randn(4, 6)
    found = torch.autograd.grad(through(layer, x).sum(), list(layer.parameters()))
    plain = torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_the_second_pass_computes_in_the_format_of_the_first() -> None:
    layer, x = Layer(), torch.randn(4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = through(layer, x).float().sum()
    loss.backward()  # outside of autocast, as in a run
    assert [dtype for *_, dtype in layer.seen] == [torch.bfloat16, torch.bfloat16]


def test_the_input_is_let_go_of_in_backward() -> None:
    layer, leaf = Layer(), torch.randn(4, 6, requires_grad=True)
    x = leaf * 1
    waits = weakref.ref(x.untyped_storage())
    loss = through(layer, x).sum()
    del x
    gc.collect()
    assert waits() is not None
    loss.backward()
    gc.collect()
    assert waits() is None  # though the graph is there as long as the loss


def test_a_layer_that_gives_something_else_is_not_for_it() -> None:
    with pytest.raises(NotATensor, match="dict"):
        checkpoint(lambda x: {"states": x}, torch.ones(2, requires_grad=True), (), OnDevice())


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3_text"])
@pytest.mark.parametrize("recomputed", [1, 3])
def test_a_whole_model_as_with_torchs_own(family: str, recomputed: int) -> None:
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False, lighter=False)
    expected = computed(model)
    recompute_layers(model.get_base_model(), recomputed, False)
    assert_same(computed(model), expected, 1e-6)


def test_what_it_is_not_for_goes_on_as_usual() -> None:
    """An argument that gradients would have to reach; and, found out in the first call, a layer with other results."""
    model = adapted()
    recompute_layers(model.get_base_model(), 3, False)
    layer = decoder_layers(model)[0]
    func = layer._gradient_checkpointing_func
    x, bias = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    func(partial(lambda x, bias: x * bias, bias=bias), x).sum().backward()
    assert bias.grad is not None
    assert torch.equal(bias.grad, torch.ones(2))
    assert func(lambda_with_keywords({"states": 1}), x) == {"states": 1}
    assert layer._gradient_checkpointing_func is not func


def lambda_with_keywords(result: Any) -> Any:
    """As transformers hands over a layer."""
    return partial(lambda x, **more: result, use_cache=False)
