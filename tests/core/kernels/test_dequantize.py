"""Which 4-bit weights our own kernel reads, and products of weights that something else than bitsandbytes dequantizes.

The kernel itself needs a card (tests/gpu).
"""

from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from support.adapted import adapted, assert_same, computed
from support.plans import EXECUTION

from qlora_core.backends.model_kernels import use_kernels
from qlora_core.backends.packed_loss import causal_lm
from qlora_core.kernels.dequantize import dequantized_weight, suits, triton_dequantize
from qlora_core.kernels.fused_lora import fuse_adapters
from qlora_profiles.settings import Execution

pytestmark = pytest.mark.filterwarnings("default")


def quantised(rows: int, columns: int, **options: Any) -> Any:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
    wanted = {"blocksize": 64, "quant_type": "nf4", "compress_statistics": True} | options
    return bnb.functional.quantize_4bit(weight, **wanted)[1]


@pytest.mark.parametrize(
    ("rows", "columns", "options", "expected"),
    [
        (48, 128, {}, True),
        (48, 128, {"quant_type": "fp4"}, True),
        (48, 128, {"compress_statistics": False}, False),
        (48, 128, {"blocksize": 128}, False),
        (3, 50, {}, False),
    ],
)
def test_what_the_kernel_reads(rows: int, columns: int, options: dict[str, Any], expected: bool) -> None:
    assert suits(quantised(rows, columns, **options)) is expected


def test_products_of_weights_dequantized_by_another_kernel_are_the_same() -> None:
    model = adapted("qwen2", quantised=True)  # its layers have biases
    expected = computed(model)
    calls = 0

    def dequantize(base: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return dequantized_weight(base)

    fuse_adapters(model, causal_lm(model).get_decoder(), torch.float32, dequantize)
    assert_same(computed(model), expected, 1e-5)
    assert calls == 2 * 7 * 3 - 3  # forward and backward of each layer; the embeddings need no gradient


def test_without_triton_bitsandbytes_dequantizes_and_it_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("Triton may work here")
    with pytest.raises(ImportError):
        triton_dequantize(torch.device("cpu"), torch.float32)
    model, said = adapted(quantised=True), list[str]()
    expected = computed(model)
    execution = Execution(**(EXECUTION | {"adapter_kernel": "fused", "dequantize_kernel": "triton"}))
    use_kernels(model, execution, said.append)
    assert len(said) == 1
    assert "bitsandbytes does it instead" in said[0]
    assert_same(computed(model), expected, 1e-5)
