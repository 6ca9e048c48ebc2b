"""Inputs of recomputing layers in main memory, on a real card: the same step, without waiting, in less memory."""

import warnings
from typing import Any

import pytest
import torch
from support.models import random_examples
from support.on_card import CARD, adapted, assert_close, loss_function

from qlora_core.backends.packed_loss import PackedLoss
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.model.packing import Packed, pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.filterwarnings("default"),
]


def step(model: Any, loss_sum: PackedLoss, batches: list[Packed]) -> tuple[float, torch.Tensor]:
    total = torch.zeros((), device=CARD)
    for packed in batches:
        loss = loss_sum(packed) / 100
        loss.backward()
        total += loss.detach()
    flat = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return float(total), flat


def batches(count: int = 4) -> list[Packed]:
    return [pack(random_examples(6, seed=seed, longest=90), CARD, pin_memory=True) for seed in range(count)]


@pytest.mark.parametrize("recomputed", [1, 2, 3])
def test_the_same_gradient_step_after_step(recomputed: int) -> None:
    model = adapted()
    loss_sum, data = loss_function(model), batches()
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = step(model, loss_sum, data)
    recompute_layers(model.get_base_model(), recomputed, False, offload=True)
    for _ in range(10):
        assert_close(step(model, loss_sum, data), expected, 0.02)


def test_the_host_never_waits_for_the_card() -> None:
    model = adapted()
    loss_sum, data = loss_function(model), batches()

    def waits(offload: bool) -> int:
        recompute_layers(model.get_base_model(), 3, False, offload=offload)
        step(model, loss_sum, data)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                for packed in data:
                    loss_sum(packed).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        model.zero_grad(set_to_none=True)
        return sum("synchroniz" in str(warning.message) for warning in seen)

    assert waits(True) == waits(False)


def test_less_memory() -> None:
    """Of the inputs of three layers one is there in forward, and two in backward."""
    model = adapted()
    loss_sum = loss_function(model)
    packed = pack(random_examples(400, seed=1, longest=90), CARD, pin_memory=True)
    kept = packed.num_tokens * model.config.hidden_size * 2

    def held(offload: bool) -> int:
        recompute_layers(model.get_base_model(), 3, False, offload=offload)
        loss_sum(packed).backward()
        model.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        loss = loss_sum(packed)
        after = torch.cuda.memory_allocated()
        loss.backward()
        model.zero_grad(set_to_none=True)
        return after - before

    assert held(False) - held(True) == pytest.approx(2 * kept, rel=0.1)
