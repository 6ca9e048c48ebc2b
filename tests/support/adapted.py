"""Tiny models with adapters that already do something, and what a step of them gives."""

from typing import Any

import pytest
import torch

from qlora_core.backends.packed_loss import packed_loss
from qlora_core.model.bitsandbytes import quantise_layers
from qlora_core.model.lora_init import initialise
from qlora_core.model.packing import pack
from support.models import random_examples, tiny_model

CPU = torch.device("cpu")


def adapted(family: str = "qwen3", quantised: bool = False, **lora: Any) -> Any:
    """A tiny model with LoRA on all linear layers, none of whose values is zero; ``lora`` are options of it."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model(family)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    if quantised:
        quantise_layers(base.get_decoder().layers, CPU)
    options = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"} | lora
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options))
    initialise(model, 7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(3))
    return model.train()


def computed(model: Any, dtype: torch.dtype | None = None, examples: Any = None) -> tuple[float, torch.Tensor]:
    """Loss and the gradient of all adapters, one after the other."""
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=dtype)
    loss = loss_sum(pack(examples or random_examples(5, seed=2), CPU))
    loss.backward()
    flat = torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return float(loss.detach()), flat


def assert_same(got: tuple[float, torch.Tensor], expected: tuple[float, torch.Tensor], tolerance: float) -> None:
    """Loss and gradient within ``tolerance``, in parts of their size."""
    assert got[0] == pytest.approx(expected[0], rel=tolerance)
    assert got[1].shape == expected[1].shape
    assert expected[1].norm() > 1e-3
    assert float((got[1] - expected[1]).norm() / expected[1].norm()) < tolerance


def difference(adapted: Any, merged: Any) -> float:
    """Relative distance of two models' logits on a fixed row of tokens."""
    ids = torch.arange(5, 37)[None] % adapted.config.get_text_config().vocab_size
    with torch.inference_mode():
        a, b = (m.eval()(input_ids=ids).logits.float() for m in (adapted, merged))
    return float((a - b).norm() / a.norm())
