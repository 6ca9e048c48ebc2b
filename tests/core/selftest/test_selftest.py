"""The self-tests pass where the operation works, and fail where it does not."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from support.command_line import SOURCES

from qlora_core.kernels.trial import require_close
from qlora_core.selftest import arithmetic, bits, kernels, processes, registry
from qlora_core.selftest.__main__ import outcome
from qlora_core.selftest.registry import TESTS, Unavailable

Broken = pytest.MonkeyPatch


def run(*names: str) -> tuple[list[dict[str, Any]], "subprocess.CompletedProcess[str]"]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(SOURCES), "CUDA_VISIBLE_DEVICES": "-1"}
    command = [sys.executable, "-m", "qlora_core.selftest", *names]
    done = subprocess.run(command, env=env, capture_output=True, encoding="utf-8", timeout=300)
    return [json.loads(line) for line in done.stdout.splitlines()], done


def test_each_test_says_when_it_begins_and_what_it_found() -> None:
    lines, done = run("torch", "device", "unsloth")
    assert done.returncode == 0
    assert [line.get("began") for line in lines[::2]] == ["torch", "device", "unsloth"]
    torch_line, device, unsloth = lines[1::2]
    assert (torch_line["state"], torch_line["found"]["version"]) == ("ok", torch.__version__)
    assert device["found"]["dtype"] == "float32"
    assert unsloth["state"] == "fail" or unsloth["found"]["version"]


def test_an_unknown_test_is_refused() -> None:
    lines, done = run("astrology")
    assert (lines, done.returncode) == ([], 2)
    assert "there are torch, device" in done.stderr


@pytest.mark.parametrize("name", TESTS)
def test_every_test_can_be_found(name: str) -> None:
    assert callable(registry.test_named(name))


@pytest.mark.parametrize("name", ["device", "adamw", "nf4", "int8", "adam8bit", "workers"])
@pytest.mark.filterwarnings("ignore")
def test_what_works_on_a_cpu(name: str) -> None:
    assert outcome(name)["state"] == "ok", outcome(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
@pytest.mark.parametrize("name", ["varlen", "graphs", "triton", "dequantize", "cross_entropy", "liger", "all_reduce"])
def test_what_needs_a_card_says_so(name: str) -> None:
    found = outcome(name)
    assert found["state"] == "unavailable"
    assert "card" in found["said"]


def test_a_wrong_product_is_noticed(monkeypatch: Broken) -> None:
    honest = torch.Tensor.__matmul__
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: honest(a, b) * (1.1 if a.requires_grad else 1.0))
    assert outcome("device")["said"] == "ArithmeticError: a matrix product is off by 10.0%"


def test_a_wrong_fused_optimizer_is_noticed(monkeypatch: Broken) -> None:
    honest = torch.optim.AdamW

    def broken(weights: Any, lr: float, fused: bool) -> Any:
        return honest(weights, lr=lr * (2 if fused else 1), fused=fused)

    monkeypatch.setattr(torch.optim, "AdamW", broken)
    assert outcome("adamw")["said"].startswith("ArithmeticError: a fused AdamW step is off by")


@pytest.mark.filterwarnings("ignore")
def test_wrong_4_bit_and_8_bit_arithmetic_is_noticed(monkeypatch: Broken) -> None:
    import bitsandbytes as bnb

    for name, layer in (("nf4", bnb.nn.Linear4bit), ("int8", bnb.nn.Linear8bitLt)):
        honest = layer.forward
        monkeypatch.setattr(layer, "forward", lambda self, x, honest=honest: honest(self, x) * 1.2)
        assert "is off by" in outcome(name)["said"]
    monkeypatch.setattr(bnb.optim.AdamW8bit, "step", lambda self: None)
    assert outcome("adam8bit")["state"] == "fail"


def test_a_product_that_is_no_number_is_noticed() -> None:
    with pytest.raises(ArithmeticError, match="nan"):
        require_close(torch.tensor([float("nan")]), torch.ones(1), "it")


def test_weights_in_4_bits_are_compared_with_what_they_were(monkeypatch: Broken) -> None:
    """A library that forgets the weight multiplies consistently, and wrongly."""
    monkeypatch.setattr(bits, "QUANTISATION_ERROR", 0.01)
    assert "a weight in 4 bits is off by" in outcome("nf4")["said"]


def test_an_error_is_told_in_one_line() -> None:
    wrapped = RuntimeError("Caught in worker 0.\nTraceback\n  File x\nFileNotFoundError: no such file\n")
    found = _outcome_of(wrapped)
    assert found["said"] == "RuntimeError: FileNotFoundError: no such file"
    assert _outcome_of(KeyError())["said"] == "KeyError"
    assert _outcome_of(ValueError("one\ntwo"))["said"] == "ValueError: one"


def test_a_full_card_proves_nothing() -> None:
    full = _outcome_of(RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"))
    assert full["state"] == "unavailable"
    assert "out of memory" in full["said"]
    assert _outcome_of(RuntimeError("no kernel image"))["state"] == "fail"


def _outcome_of(error: Exception) -> dict[str, Any]:
    def fail() -> Any:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlora_core.selftest.__main__.test_named", lambda name: fail)
        return outcome("torch")


def test_why_a_cuda_build_sees_no_card(monkeypatch: Broken) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def init() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\nUpdate it")

    monkeypatch.setattr(torch.cuda, "init", init)
    assert arithmetic.torch_build()["refused"] == "The NVIDIA driver on your system is too old"


def test_a_card_that_only_emulates_bfloat16_computes_in_float16(monkeypatch: Broken) -> None:
    asked: list[bool] = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert arithmetic._training_dtype("cuda") is torch.float16
    assert asked == [False]


def test_the_reference_for_packed_attention_keeps_sequences_apart() -> None:
    q, k, v = (torch.randn(sum(kernels.LENGTHS), 2, 8) for _ in range(3))
    whole = kernels._apart(q, k, v)
    k[0] += 1.0
    changed = kernels._apart(q, k, v)
    first = kernels.LENGTHS[0]
    assert torch.equal(whole[first:], changed[first:])
    assert not torch.allclose(whole[:first], changed[:first])


def test_ranks_add_up_their_numbers() -> None:
    processes.reduce_over(2, "gloo")


def test_one_card_has_nothing_to_reduce() -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("there are several cards")
    with pytest.raises(Unavailable):
        processes.all_reduce()
