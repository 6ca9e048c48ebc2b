"""8-bit layers that drop what only a trained weight would need."""

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear8bitLt

from qlora_core.model.int8 import forget_inputs


@pytest.fixture
def layer() -> Any:
    torch.manual_seed(1)
    plain = torch.nn.Linear(64, 32, bias=True)
    quantised = Linear8bitLt(64, 32, bias=True, has_fp16_weights=False)
    quantised.load_state_dict(plain.state_dict())
    quantised.requires_grad_(False)
    return quantised.to("cpu")


def gradient(layer: Any) -> torch.Tensor:
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    layer(x * 1.0).pow(2).sum().backward()
    assert x.grad is not None
    return x.grad


def input_lives_on(layer: Any) -> bool:
    x = torch.randn(2, 5, 64, requires_grad=True) * 1.0
    held = weakref.ref(x)
    out = layer(x)
    del x
    gc.collect()
    alive = held() is not None
    out.sum().backward()
    return alive


def test_the_gradient_is_the_same_and_the_input_is_gone(layer: Any) -> None:
    before = gradient(layer)
    assert input_lives_on(layer)
    assert forget_inputs(torch.nn.Sequential(layer)) == 1
    assert torch.equal(gradient(layer), before)
    assert not input_lives_on(layer)


def test_a_forward_without_gradients_has_nothing_to_forget(layer: Any) -> None:
    expected = copy.deepcopy(layer)(torch.ones(1, 3, 64))
    forget_inputs(torch.nn.Sequential(layer))
    with torch.no_grad():
        assert torch.equal(layer(torch.ones(1, 3, 64)), expected)
