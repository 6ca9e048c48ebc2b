"""4-bit layers stay differentiable on every CPU, also on those for which bitsandbytes has a faster product."""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch

from qlora_core.model.bitsandbytes import keep_differentiable, linear_4bit, quantise_layers

pytestmark = pytest.mark.filterwarnings("default")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def repacking(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let bitsandbytes take this for a CPU with AVX512-BF16; what it repacked."""
    repacked: list[Any] = []

    def repack(weight: Any, state: Any) -> Any:
        repacked.append(weight)
        return weight, state

    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(bnb.nn.modules, "_convert_weight_packed_for_cpu", repack)
    return repacked


def weight_of(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def evaluated(layer: Any) -> None:
    with torch.no_grad():
        layer.eval()(torch.ones(2, layer.in_features))


def test_bitsandbytes_repacks_a_layer_that_nobody_prepared(repacking: list[Any]) -> None:
    layer = bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4")
    evaluated(layer.to(CPU))
    assert len(repacking) == 1
    evaluated(keep_differentiable(bnb.nn.Linear4bit(64, 32, bias=False, quant_type="nf4").to(CPU)))
    assert len(repacking) == 1


def test_a_layer_of_ours_has_the_gradient_of_its_weight_after_an_evaluation(repacking: list[Any]) -> None:
    layer = linear_4bit(weight_of(32, 64), CPU, dtype=torch.float32)
    evaluated(layer)
    x = torch.ones(2, 64, requires_grad=True)
    layer.train()(x).sum().backward()
    dequantised = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert not repacking
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dequantised.sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


def test_all_linear_layers_are_replaced_with_their_biases(repacking: list[Any]) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32, bias=False))
    bias = model[0].bias
    quantise_layers(model, CPU)
    assert [type(layer).__name__ for layer in model] == ["Linear4bit", "ReLU", "Linear4bit"]
    assert model[0].bias is bias
    assert model[2].bias is None
    assert model[2].weight.quant_state.shape == (32, 64)
    evaluated(model[0])
    assert not repacking


def test_options_reach_the_quantiser() -> None:
    state = linear_4bit(weight_of(32, 64), CPU, quant_type="fp4", compress_statistics=False).weight.quant_state
    assert (state.quant_type, state.nested) == ("fp4", False)
