"""The recipe is what a card computes, in every start: with and without a preflight, held-out rows, a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import save_tiny_model, write_rows
from support.on_card import CARD, SIZES
from support.plans import ON_CARD
from support.recipe_runs import ALL_TURNED, Runs, figures_of

from qlora_core.kernels.keyed_dropout import _fastest, drop, lowbias
from qlora_profiles.errors import EXIT_INTERRUPTED, EXIT_OK

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
KERNELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "recomputed": {"layers_recomputed": 2},
    "fused": {"adapter_kernel": "fused", "dequantize_kernel": "triton"},
    "graphs": {"adapter_kernel": "fused", "dequantize_kernel": "triton", "cuda_graphs": True},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    inputs = tmp_path_factory.mktemp("inputs")
    save_tiny_model(inputs / "model", **SIZES)
    write_rows(inputs / "rows.jsonl")
    return Runs(inputs, tmp_path_factory.mktemp("runs"), **ON_CARD)


@pytest.mark.parametrize("method", ["qlora-4", "lora"])
@pytest.mark.parametrize("kernels", KERNELS)
def test_dropout_is_on_from_the_first_step(kernels: str, method: str, runs: Runs) -> None:
    common = {"method": method, "val_size": 0.0, "preflight": False} | KERNELS[kernels]
    without, dropped = (runs.figures(**common, lora_dropout=share) for share in (0.0, 0.5))
    assert dropped["grad_norm"][0] != pytest.approx(without["grad_norm"][0], rel=1e-2)


@pytest.mark.parametrize("method", ["qlora-4", "lora"])
def test_the_same_is_dropped_however_a_step_is_cut(method: str, runs: Runs) -> None:
    common = {"method": method, "val_size": 0.0, "lora_dropout": 0.5, "preflight": False}
    whole, cut = (runs.figures(**common, **how) for how in ({}, {"token_budget": 64, "layers_recomputed": 2}))
    assert cut["grad_norm"][:1] == pytest.approx(whole["grad_norm"][:1], rel=2e-2)
    assert cut["loss"][:2] == pytest.approx(whole["loss"][:2], rel=2e-3)  # then bfloat16's own rounding shows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("features", [1, 130, 4096])
def test_a_card_drops_what_a_processor_drops(features: int, dtype: torch.dtype) -> None:
    told: list[str] = []
    fast = _fastest(CARD, told.append)
    assert fast is not drop
    assert told == []
    x, rows = torch.randn(67, features, dtype=dtype), lowbias(torch.arange(67, dtype=torch.int32))
    assert torch.equal(fast(x.to(CARD), rows.to(CARD), 0.3).cpu() != 0, drop(x, rows, 0.3) != 0)


def test_eight_bit_adamw_updates_otherwise(runs: Runs) -> None:
    plain, eight = (runs.figures(method="lora", optimizer=name)["loss"] for name in ("adamw", "adamw-8bit"))
    assert plain[0] == pytest.approx(eight[0], rel=1e-4)
    assert plain[2] != pytest.approx(eight[2], rel=1e-6)


@pytest.mark.parametrize("val_size", [0.0, 2.0])
@pytest.mark.parametrize("method", ["qlora-4", "lora"])
def test_a_preflight_changes_nothing(method: str, val_size: float, runs: Runs) -> None:
    settings = ALL_TURNED | {"method": method, "val_size": val_size}
    measured, not_measured = (runs.figures(**settings, preflight=wanted) for wanted in (True, False))
    for figure in ("loss", "grad_norm", "rate", "tokens"):
        assert measured[figure] == pytest.approx(not_measured[figure], rel=2e-3), figure


@pytest.mark.parametrize("preflight", [True, False])
@pytest.mark.parametrize("method", ["qlora-4", "lora"])
def test_a_resumed_run_computes_the_same_recipe(method: str, preflight: bool, runs: Runs, tmp_path: Path) -> None:
    settings = ALL_TURNED | {"method": method, "val_size": 0.0, "preflight": preflight}
    whole = runs.figures(**settings)
    assert runs.train(tmp_path, stop_at=3, **settings) == EXIT_INTERRUPTED
    assert runs.train(tmp_path, **settings) == EXIT_OK
    again = figures_of(tmp_path, EXIT_OK)
    for figure in ("steps", "loss", "grad_norm", "rate", "tokens"):
        assert again[figure] == pytest.approx(whole[figure], rel=2e-3), figure
