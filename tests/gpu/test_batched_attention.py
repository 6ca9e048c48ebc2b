"""Rows of one length as a batch, by the kernel that a real card has for them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models import PlainExample
from support.on_card import CARD, adapted, assert_close, loss_function
from torch import Tensor

from qlora_core.backends.packed_loss import PackedLoss
from qlora_core.kernels import batched_attention
from qlora_core.kernels.attention import end_to_end
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.model.packing import pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.filterwarnings("default"),
]
LENGTH = batched_attention.SHORTEST


def rows() -> list[PlainExample]:
    draw = torch.Generator().manual_seed(4)
    ids = [torch.randint(3, 320, (LENGTH,), generator=draw).tolist() for _ in range(3)]
    return [PlainExample(each, [True] * LENGTH) for each in ids]


def gradient(model: Any, loss_sum: PackedLoss) -> tuple[float, Tensor]:
    model.zero_grad(set_to_none=True)
    loss = loss_sum(pack(rows(), CARD)) / (3 * LENGTH)
    loss.backward()
    grads = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(grads)


@pytest.mark.parametrize("recomputed", [0, 3])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_rows_as_a_batch_give_the_same_gradient(family: str, recomputed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    attend = batched_attention.attend

    def spied(*arguments: Any) -> Tensor:
        taken.append(1)
        return attend(*arguments)

    monkeypatch.setattr(batched_attention, "attend", spied)
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False)
    usual = loss_function(model)
    expected = gradient(model, usual)
    assert taken == []
    assert_close(gradient(model, replace(usual, full_length=LENGTH)), expected, 0.04)
    assert taken, "a layer without a window takes the rows as a batch"


def test_a_card_of_these_generations_has_the_kernel() -> None:
    config = adapted("qwen3").config
    expected = torch.cuda.get_device_capability(CARD)[0] in batched_attention.GENERATIONS
    assert batched_attention.usable(config, CARD, end_to_end, pytest.fail) == expected
