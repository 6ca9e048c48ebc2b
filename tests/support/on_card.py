"""Tiny models with adapters on a real card, and what their steps give."""

from typing import Any

import pytest
import torch

from qlora_core.backends.packed_loss import PackedLoss, packed_loss
from qlora_core.kernels.attention import implementation
from qlora_core.model.bitsandbytes import quantise_layers
from qlora_core.model.lora_init import initialise
from support.models import tiny_model

CARD = torch.device("cuda")
HALF = torch.bfloat16
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "head_dim": 64}


def adapted(family: str = "qwen3", quantised: bool = False) -> Any:
    from peft import LoraConfig, get_peft_model

    base = tiny_model(family, **SIZES).to(CARD, HALF)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    if quantised:
        quantise_layers(base.get_decoder().layers, CARD, HALF)
    base.set_attn_implementation(implementation("varlen", base.config))
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    initialise(model, 7)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.05, generator=torch.Generator(CARD).manual_seed(3))
    return model.train()


def loss_function(model: Any) -> PackedLoss:
    return packed_loss(model, attention="varlen", kernel="chunked", chunk_tokens=64, autocast_dtype=HALF)


def assert_close(got: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor], tolerance: float) -> None:
    assert got[0] == pytest.approx(expected[0], rel=tolerance / 4)
    assert float((got[1] - expected[1]).norm() / expected[1].norm()) < tolerance
