"""Fused adapters, Liger's layers and CUDA graphs on a real card: the same step, by other kernels."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from support.models import FAMILIES, random_examples
from support.on_card import CARD, HALF, adapted, assert_close, loss_function

from qlora_core.backends.model_kernels import graphed
from qlora_core.backends.packed_loss import PackedLoss, decoder_of
from qlora_core.execution.graph_sizes import padded_size
from qlora_core.execution.limits import Limits
from qlora_core.kernels.attention import shares_heads
from qlora_core.kernels.dequantize import LAST_BITS, dequantized_weight, triton_dequantize
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_core.kernels.norm_rope_swiglu import FusedLayers, fuse_layers, layer_kernels, liger_kernels
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.memory.cuda_graphs import GraphedDecoder, Inputs, graph_shape
from qlora_core.model.bitsandbytes import linear_4bit
from qlora_core.model.packing import pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.filterwarnings("default"),
]
LINEARS = 7 * 3
needs_liger = pytest.mark.skipif(find_spec("liger_kernel") is None, reason="liger is not installed")


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def step(model: Any, loss_sum: PackedLoss, seeds: tuple[int, ...] = (2,)) -> tuple[float, torch.Tensor]:
    """Micro-batches of one step; the gradients of all adapters."""
    model.zero_grad(set_to_none=True)
    total = torch.zeros((), device=CARD)
    for seed in seeds:
        loss = loss_sum(pack(random_examples(6, seed=seed, longest=90), CARD, pin_memory=True)) / 100
        loss.backward()
        total += loss.detach()
    return float(total), torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_fused_adapters_give_pefts_gradient(family: str, quantised: bool, recomputed: int) -> None:
    model = adapted(family, quantised)
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = step(model, loss_function(model))
    assert fuse_adapters(model, decoder_of(model), HALF).num_layers == LINEARS
    assert_close(step(model, loss_function(model)), expected, 0.04)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(1024, 4096), (192, 320), (65, 64)])
def test_our_kernel_dequantizes_to_what_bitsandbytes_makes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    layer = linear_4bit(weight, CARD, dtype=dtype)
    ours, theirs = triton_dequantize(CARD, dtype)(layer), dequantized_weight(layer)
    assert ours.dtype == theirs.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=LAST_BITS * torch.finfo(dtype).eps, atol=0.0)
    assert dtype != torch.bfloat16 or torch.equal(ours, theirs)


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_fused_adapters_over_our_dequantized_weights_give_the_same_gradient(family: str) -> None:
    model = adapted(family, quantised=True)
    expected = step(model, loss_function(model))
    fuse_adapters(model, decoder_of(model), HALF, triton_dequantize(CARD, HALF))
    assert_close(step(model, loss_function(model)), expected, 0.04)


def test_weights_that_stay_dequantized_change_no_bit_and_make_room() -> None:
    model = adapted(quantised=True)
    fused, loss_sum = fuse_adapters(model, decoder_of(model), HALF, triton_dequantize(CARD, HALF)), loss_function(model)
    expected = step(model, loss_sum)
    held = torch.cuda.memory_allocated()
    fused.keep_dequantized(decoder_layers(model))
    assert torch.equal(step(model, loss_sum)[1], expected[1])
    size = sum(2 * m.base.weight.quant_state.shape.numel() for group in fused.groups for m in group.members)
    assert torch.cuda.memory_allocated() - held >= size
    assert fused.release()
    assert torch.cuda.memory_allocated() - held < size
    assert torch.equal(step(model, loss_sum)[1], expected[1])


def test_fused_adapters_launch_fewer_kernels() -> None:
    model = adapted(quantised=True)
    before = _launches(lambda: step(model, loss_function(model)))
    fuse_adapters(model, decoder_of(model), HALF)
    assert _launches(lambda: step(model, loss_function(model))) < 0.9 * before  # 0.85 on an H200


def _launches(function: Callable[[], Any]) -> int:
    from torch.profiler import ProfilerActivity, profile

    function()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if "LaunchKernel" in event.key)


def _layers(model: Any, warned: list[str], whose: str = "ours") -> FusedLayers:
    choices = layer_kernels() if whose == "ours" else [liger_kernels()]
    return fuse_layers(model.get_base_model(), choices, HALF, warned.append)


@needs_liger
@pytest.mark.parametrize("whose", ["ours", "liger"])
@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_fused_layers_give_the_models_gradient(family: str, recomputed: int, whose: str) -> None:
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = step(model, loss_function(model))
    warned: list[str] = []
    layers = _layers(model, warned, whose)
    assert warned == []
    assert all(layers.replaced.values())
    assert_close(step(model, loss_function(model)), expected, 0.06)
    fuse_adapters(model, decoder_of(model), HALF)
    assert_close(step(model, loss_function(model)), expected, 0.06)


@needs_liger
@pytest.mark.parametrize("recomputed", [0, 2, 3])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_what_these_kernels_made_can_be_made_again(family: str, recomputed: int) -> None:
    """Their backward writes over what they kept: adapters must have made their input of it before."""
    results = []
    for rematerialize in (False, True):
        model = adapted(family)
        recompute_layers(model.get_base_model(), recomputed, False)
        _layers(model, []).rematerialize = rematerialize
        fuse_adapters(model, decoder_of(model), HALF)
        results.append(step(model, loss_function(model)))
    assert_close(results[1], results[0], 0.02)


def test_whether_older_kernels_share_heads_can_be_tried() -> None:
    from torch.nn.attention.varlen import varlen_attn

    assert shares_heads(varlen_attn, CARD) in (True, False)


def with_graphs(model: Any, recomputed: int, warned: list[str]) -> tuple[PackedLoss, GraphedDecoder]:
    usual = loss_function(model)
    limits = Limits(token_budget=4096, layers_recomputed=recomputed, cuda_graphs=True)
    decoder = graphed(usual, limits, warned.append)
    assert decoder is not None
    return replace(usual, decode=decoder), decoder


@pytest.mark.parametrize("recomputed", [0, 2, 3])
@pytest.mark.parametrize("kernels", ["plain", "fused", "expanded", "all"])
def test_graphs_give_the_usual_steps(kernels: str, recomputed: int) -> None:
    if kernels == "all" and find_spec("liger_kernel") is None:
        pytest.skip("liger is not installed")
    model = adapted(quantised=True)
    if kernels != "plain":
        fused = fuse_adapters(model, decoder_of(model), HALF)
    if kernels == "expanded":
        fused.keep_dequantized(decoder_layers(model)[:2])
    if kernels == "all":
        _layers(model, [])
    recompute_layers(model.get_base_model(), recomputed, False)
    warned: list[str] = []
    loss_sum, decoder = with_graphs(model, recomputed, warned)
    usual = loss_function(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, fused=True)
    for seeds in ((1, 2, 3), (4,), (5, 6), (7, 8)):
        expected = step(model, usual, seeds)
        assert_close(step(model, loss_sum, seeds), expected, 0.04)
        optimizer.step()  # the graph must see what it changed
    assert warned == []
    assert decoder.num_graphs > 0


def test_a_graph_computes_what_its_padded_inputs_give() -> None:
    model = adapted(quantised=True)
    fuse_adapters(model, decoder_of(model), HALF)
    loss_sum, decoder = with_graphs(model, 0, [])
    packed = pack(random_examples(6, seed=2, longest=90), CARD)
    hidden = decoder(packed)
    assert hidden is not None
    inputs = Inputs(graph_shape(packed, padded_size(packed.num_tokens, 4096)), CARD)
    inputs.load(packed)
    with loss_sum.autocast("cuda"):
        filled = loss_sum.hidden_states(inputs.packed)[: packed.num_tokens]
        usual = loss_sum.hidden_states(packed)
    torch.testing.assert_close(hidden.detach(), filled.detach(), rtol=0, atol=0)
    assert float((hidden - usual).float().norm() / usual.float().norm()) < 0.02


def test_a_step_that_ran_out_of_memory_leaves_nothing_behind() -> None:
    """Gradients dropped in the middle of a step start from zero again."""
    model = adapted()
    loss_sum, _ = with_graphs(model, 0, [])
    expected = step(model, loss_function(model), (1, 2))
    step(model, loss_sum, (1, 2, 3))
    assert_close(step(model, loss_sum, (1, 2)), expected, 0.04)
