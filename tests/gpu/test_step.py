"""The step on a real card: kernels agree, and a real lack of memory changes no gradient."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.executions import running
from support.models import FAMILIES, random_examples, tiny_model

from qlora_core.backends.packed_loss import packed_loss
from qlora_core.execution.limits import Limits
from qlora_core.kernels.attention import VARLEN, implementation
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.model.lora_init import initialise
from qlora_core.model.packing import pack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card"),
    pytest.mark.filterwarnings("default"),
]
CARD = torch.device("cuda")


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def adapted(family: str, attention: str, **changes: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    base = tiny_model(family, **changes).to(CARD, torch.bfloat16)
    base.set_attn_implementation(implementation(attention, base.config))
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    initialise(model, 7)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.05, generator=torch.Generator(CARD).manual_seed(3))
    return model.train()


def gradient(model: Any, attention: str, kernel: str, examples: list[Any], budget: int) -> tuple[float, torch.Tensor]:
    loss = packed_loss(model, attention=attention, kernel=kernel, chunk_tokens=64, autocast_dtype=torch.bfloat16)
    limits = Limits(token_budget=budget, layers_recomputed=0)
    result = running(model, limits, loss, memory=DeviceMemory(device=CARD)).run(examples)
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return float(result.loss), flat


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("budget", [1, 10_000])
def test_varlen_equals_masked_attention(family: str, budget: int) -> None:
    examples = random_examples(8, seed=2, longest=60)
    masked = gradient(adapted(family, "sdpa", num_key_value_heads=2), "sdpa", "chunked", examples, budget)
    varlen = gradient(adapted(family, "varlen", num_key_value_heads=2), "varlen", "chunked", examples, budget)
    assert varlen[0] == pytest.approx(masked[0], rel=5e-3)
    assert torch.nn.functional.cosine_similarity(varlen[1], masked[1], dim=0) > 0.995


def test_varlen_is_what_runs() -> None:
    assert adapted("qwen3", "varlen").config._attn_implementation == VARLEN


def _kernels() -> list[str]:
    from importlib.util import find_spec

    return ["logits", "chunked", *(["triton"] if find_spec("triton") else [])]


def test_loss_kernels_agree() -> None:
    examples = random_examples(8, seed=5, longest=60)
    model = adapted("qwen3", "varlen")
    results = {kernel: gradient(model, "varlen", kernel, examples, 10_000) for kernel in _kernels()}
    for kernel, (loss, flat) in results.items():
        assert loss == pytest.approx(results["logits"][0], rel=3e-3), kernel
        assert torch.nn.functional.cosine_similarity(flat, results["logits"][1], dim=0) > 0.995, kernel


def test_a_real_lack_of_memory_changes_no_gradient() -> None:
    changes = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "head_dim": 64,
        "max_position_embeddings": 8192,
    }
    examples = random_examples(24, seed=5, longest=1000)
    model = adapted("qwen3", "varlen", **changes)
    loss, expected = gradient(model, "varlen", "chunked", examples, 100_000)
    needed = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.5 * needed / torch.cuda.get_device_properties(0).total_memory)
    capped_loss, capped = gradient(model, "varlen", "chunked", examples, 100_000)
    assert torch.cuda.memory_stats()["num_ooms"] > 0
    assert capped_loss == pytest.approx(loss, rel=2e-3)
    assert torch.nn.functional.cosine_similarity(capped, expected, dim=0) > 0.995


def test_packing_onto_the_card() -> None:
    packed = pack(random_examples(3), CARD, pin_memory=True)
    assert packed.input_ids.device.type == "cuda"
    assert packed.boundaries.dtype == torch.int32
