"""Which kernels a plan computes adapters and layers with, and which values for them are refused."""

from typing import Any

import pytest
from support.measured import H200
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles.errors import QloraRunError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import Resolved
from qlora_run.planner import resolve
from qlora_run.planner.cost.inputs import CostInputs

SMALL = known("Qwen/Qwen3-0.6B")
LIGER = {"liger-kernel": "0.8.5", "triton": "3.7.0", "bitsandbytes": "0.50.2"}


def decided(name: str, report: HardwareReport | None = None, **values: Any) -> Resolved:
    plan = resolve(report or card_report(), asking(**values), SMALL, data_of())
    return plan.execution[name]


@pytest.mark.parametrize(
    ("report", "values", "value", "why"),
    [
        (card_report(), {}, "fused", "few kernels"),
        (cpu_report(), {}, "plain", "on a card only"),
        (card_report(), {"lora_dropout": 0.05}, "plain", "dropout"),
        (card_report(), {"method": "qlora-8"}, "plain", "qlora-8"),
        (card_report(), {"adapter_kernel": "plain"}, "plain", "asked"),
        (cpu_report(), {"adapter_kernel": "fused"}, "fused", "asked"),
    ],
)
def test_adapters(report: HardwareReport, values: dict[str, Any], value: str, why: str) -> None:
    resolved = decided("adapter_kernel", report, **values)
    assert resolved.value == value
    assert why in resolved.reason


@pytest.mark.parametrize(
    ("report", "values", "value", "why"),
    [
        (card_report(packages=LIGER), {}, "triton", "the same bits"),
        (card_report(), {}, "bitsandbytes", "Triton is missing"),
        (cpu_report(), {}, "bitsandbytes", "NVIDIA"),
        (card_report(packages=LIGER), {"lora_dropout": 0.05}, "bitsandbytes", "fused adapters"),
        (card_report(packages=LIGER), {"method": "lora"}, "bitsandbytes", "16 bits"),
        (card_report(packages=LIGER), {"dequantize_kernel": "bitsandbytes"}, "bitsandbytes", "asked"),
    ],
)
def test_what_dequantizes_weights(report: HardwareReport, values: dict[str, Any], value: str, why: str) -> None:
    resolved = decided("dequantize_kernel", report, **values)
    assert resolved.value == value
    assert why in resolved.reason


def test_our_kernel_is_refused_where_it_cannot_run() -> None:
    with pytest.raises(QloraRunError, match="Triton is missing"):
        decided("dequantize_kernel", card_report(), dequantize_kernel="triton")


def test_what_norms_and_activations_made_is_made_again_where_a_person_says_so() -> None:
    ready = card_report(packages=LIGER)
    assert decided("rematerialize_activations", ready).value is False
    assert decided("rematerialize_activations", ready, rematerialize_activations="yes").value is True
    for values in ({"layer_kernels": "plain"}, {"adapter_kernel": "plain"}):
        with pytest.raises(QloraRunError, match="fused adapters and Liger"):
            decided("rematerialize_activations", ready, rematerialize_activations="yes", **values)


def test_fused_layers_where_they_are_installed() -> None:
    ready = card_report(packages=LIGER)
    assert decided("layer_kernels", ready).value == "liger"
    assert decided("layer_kernels", ready, layer_kernels="plain").value == "plain"
    assert decided("layer_kernels", card_report()).value == "plain"


def test_graphs_where_launching_takes_longest_and_they_fit() -> None:
    fast = card_report(gpus=(H200,), packages=LIGER)
    found = decided("cuda_graphs", fast)
    assert (found.value, found.source) == (True, "tuner")
    assert "slower" in str(found.if_changed)
    slow = decided("cuda_graphs", card_report(packages=LIGER), examples_per_step=64)
    assert (slow.value, slow.source) == (False, "tuner")
    assert "slower" in str(slow.if_changed)
    assert decided("cuda_graphs", fast, cuda_graphs="no").value is False
    assert decided("cuda_graphs", fast, token_budget=16384).value is False
    assert decided("cuda_graphs", card_report(), cuda_graphs="yes").value is True
    assert decided("cuda_graphs", cpu_report()).value is False


@pytest.mark.parametrize(
    ("report", "values", "words"),
    [
        (card_report(), {"layer_kernels": "liger"}, "liger-kernel is not installed"),
        (cpu_report(), {"layer_kernels": "liger"}, "needs an NVIDIA card"),
        (card_report(packages=LIGER), {"layer_kernels": "liger", "method": "full"}, "all weights trained"),
        (cpu_report(), {"cuda_graphs": "yes"}, "for CUDA only"),
        (card_report(), {"cuda_graphs": "yes", "attention": "sdpa"}, "need the attention varlen"),
        (card_report(), {"cuda_graphs": "yes", "lora_dropout": 0.1}, "dropout"),
        (card_report(), {"cuda_graphs": "yes", "offload_activations": "yes"}, "cannot be captured"),
    ],
)
def test_what_cannot_work_is_refused(report: HardwareReport, values: dict[str, Any], words: str) -> None:
    with pytest.raises(QloraRunError, match=words) as caught:
        resolve(report, asking(**values), SMALL, data_of())
    assert caught.value.fix
    assert caught.value.fix.startswith("--")


def test_the_memory_model_is_told() -> None:
    report = card_report(packages=LIGER)
    cases: list[tuple[dict[str, Any], bool, bool]] = [
        ({}, True, True),
        ({"adapter_kernel": "plain"}, False, True),
        ({"layer_kernels": "plain"}, True, False),
        ({"method": "qlora-8"}, False, True),
    ]
    for values, adapters, layers in cases:
        plan = resolve(report, asking(**values), SMALL, data_of())
        inputs = CostInputs.of(plan.recipe_values(), plan.execution_values())
        assert (inputs.fused_adapters, inputs.fused_kernels) == (adapters, layers)
