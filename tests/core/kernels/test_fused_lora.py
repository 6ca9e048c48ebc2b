"""Fused adapters learn what PEFT's own forward learns, to the rounding of the arithmetic."""

from typing import Any

import pytest
import torch
from support.adapted import adapted, assert_same, computed
from support.models import FAMILIES, random_examples

from qlora_core.backends.packed_loss import decoder_of, packed_loss
from qlora_core.kernels import fused_lora
from qlora_core.kernels.dequantize import dequantized_weight
from qlora_core.kernels.fused_lora import FusedAdapters, fuse_adapters
from qlora_core.memory.checkpointed_layers import decoder_layers, recompute_layers
from qlora_core.model.packing import Packed, pack
from qlora_profiles.architectures import ARCHITECTURES

CPU = torch.device("cpu")
SEVEN = 7 * 3
"""Adapted linear layers of a tiny model."""


def fused(model: Any, dtype: torch.dtype = torch.float32) -> FusedAdapters:
    return fuse_adapters(model, decoder_of(model), dtype)


@pytest.mark.parametrize("recomputed", [0, 2, 3])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_equal_to_peft_in_float32(family: str, recomputed: int) -> None:
    model = adapted(family)
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = computed(model)
    assert fused(model).num_layers == SEVEN
    assert_same(computed(model), expected, 5e-6)


ADDING = [name for name, family in ARCHITECTURES.items() if family.only_adds_mlp]


@pytest.mark.parametrize("family", [*ADDING, "gemma3_text"])
def test_what_no_backward_reads_is_not_made_again(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last product of a layer that recomputes; its place holds no numbers, so whoever read it would show."""
    made: list[int] = []
    real = fused_lora._sum

    def counted(group: fused_lora.Group, *rest: Any) -> torch.Tensor:
        made.append(group.only_added)
        return real(group, *rest)

    monkeypatch.setattr(fused_lora, "_sum", counted)
    model = adapted(family)
    expected = computed(model)
    fused(model)
    computed(model)
    layers = [len(made), sum(made)]
    recompute_layers(model.get_base_model(), 3, False)
    made.clear()
    assert_same(computed(model), expected, 5e-6)
    skipped = 3 if family in ADDING else 0
    assert layers[1] == skipped
    assert [len(made), sum(made)] == [2 * layers[0] - skipped, layers[1]]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("recomputed", [0, 3])
def test_equal_over_4_bit_layers(recomputed: int) -> None:
    model = adapted(quantised=True)
    recompute_layers(model.get_base_model(), recomputed, False)
    expected = computed(model)
    assert fused(model).num_layers == SEVEN
    assert_same(computed(model), expected, 1e-5)


def test_as_close_in_16_bits_as_peft_is() -> None:
    exact = computed(adapted())
    model = adapted()
    model.get_base_model().to(torch.bfloat16)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    peft = computed(model, torch.bfloat16)
    assert fused(model, torch.bfloat16).num_layers == SEVEN
    ours = computed(model, torch.bfloat16)
    assert ours[1].dtype == torch.float32

    def error(of: tuple[float, torch.Tensor]) -> float:
        return float((of[1] - exact[1]).norm() / exact[1].norm())

    assert error(ours) < 1.2 * error(peft)
    assert_same(ours, peft, 0.05)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj", "o_proj"], ["k_proj", "q_proj", "v_proj"]])
def test_some_layers_only(targets: list[str]) -> None:
    ranks: dict[str, Any] = {"rank_pattern": {"q_proj": 2}} if "q_proj" in targets else {}
    model = adapted(target_modules=targets, use_rslora=True, **ranks)
    expected = computed(model)
    assert fused(model).num_layers == 3 * len(targets)
    assert_same(computed(model), expected, 5e-6)


def test_one_product_for_layers_that_read_the_same() -> None:
    groups = [len(group.members) for group in fused(adapted()).groups]
    assert sorted(groups) == sorted([3, 1, 2, 1] * 3)


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"lora_dropout": 0.1}, 0),
        ({"use_dora": True}, 0),
        ({"bias": "all"}, SEVEN),  # nothing here has a bias to train
        ({"use_rslora": True}, SEVEN),
    ],
)
def test_what_is_more_than_a_sum_stays_with_peft(options: dict[str, Any], left: int) -> None:
    assert fused(adapted(**options)).num_layers == left


def test_a_trained_bias_stays_with_peft() -> None:
    assert fused(adapted("qwen2", bias="all")).num_layers == SEVEN - 3 * 3


@pytest.mark.filterwarnings("default")
def test_8_bit_layers_stay_with_peft() -> None:
    import bitsandbytes as bnb

    model = adapted(target_modules=["o_proj"])
    for layer in model.get_base_model().model.layers:
        layer.self_attn.o_proj.base_layer = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    assert fused(model).num_layers == 0


def test_the_optimizer_is_seen_at_once() -> None:
    model = adapted()
    fused(model)
    before = computed(model)
    with torch.no_grad():
        torch._foreach_mul_([p for p in model.parameters() if p.requires_grad], 1.5)
    expected = computed(_plain_copy(model))
    assert expected[0] != pytest.approx(before[0], rel=1e-6)
    assert_same(computed(model), expected, 5e-6)


@pytest.mark.parametrize(("recomputed", "copyings"), [(0, 1), (2, 1 + 4 * 2 * 2), (3, 4 * 2 * 3)])
def test_copies_that_stay_are_made_at_once(recomputed: int, copyings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four groups a layer; in a layer that recomputes each makes its copies when it needs them, twice."""
    model = adapted()
    fused(model)
    recompute_layers(model.get_base_model(), recomputed, False)
    computed(model)
    calls: list[int] = []
    real = torch._foreach_copy_

    def counted(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
        calls.append(len(targets))
        real(targets, sources)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    examples = pack(random_examples(2, seed=3), CPU)
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=64, autocast_dtype=None)
    loss_sum(examples).backward()
    assert len(calls) == copyings
    assert calls[0] == (3 - recomputed) * SEVEN // 3 * 2 or recomputed == 3
    calls.clear()
    model.eval()
    with torch.no_grad():
        loss_sum(examples)
    assert calls == []


def _plain_copy(model: Any) -> Any:
    plain = adapted()
    plain.load_state_dict(model.state_dict())
    return plain


def test_gradients_add_up_over_micro_batches() -> None:
    model, plain = adapted(), adapted()
    fused(model)
    results = []
    for each in (model, plain):
        loss_sum = packed_loss(each, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)
        losses = [loss_sum(pack(random_examples(3, seed=seed), CPU)) for seed in (1, 2)]
        for loss in losses:
            loss.backward()
        flat = torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None])
        results.append((float(torch.stack(losses).sum().detach()), flat))
    assert_same(results[0], results[1], 5e-6)


def test_nothing_waits_after_a_step_nor_after_an_error() -> None:
    model = adapted()
    groups = fused(model).groups
    computed(model)
    assert not any(group._waiting or group._read is not None for group in groups)
    attention = model.get_base_model().model.layers[1].self_attn
    k_proj, attention.k_proj = attention.k_proj, torch.nn.Identity()
    with pytest.raises(RuntimeError):
        computed(model)
    attention.k_proj = k_proj
    assert any(group._waiting for group in groups)
    with torch.no_grad():
        decoder_of(model)(input_ids=torch.ones(1, 4, dtype=torch.long))
    assert not any(group._waiting or group._read is not None for group in groups)


def test_merged_and_switched_off_adapters_and_saved_names() -> None:
    model = adapted()
    names = list(model.state_dict())
    inputs = torch.arange(6)[None]
    expected = model(input_ids=inputs, use_cache=False).logits
    with model.disable_adapter():
        base = model(input_ids=inputs, use_cache=False).logits
    adapters = fused(model)
    assert list(model.state_dict()) == names
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=inputs, use_cache=False).logits, base)
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=inputs, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(model(input_ids=inputs, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    adapters.remove()
    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(model(input_ids=inputs, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)


def test_held_out_losses_are_as_before() -> None:
    model = adapted().eval()
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)
    packed: Packed = pack(random_examples(4), CPU)
    expected = loss_sum.token_losses(packed)
    fused(model)
    torch.testing.assert_close(loss_sum.token_losses(packed), expected, rtol=0, atol=0)


def expanding(model: Any, made: list[int]) -> FusedAdapters:
    """Fused adapters that note how many weights were dequantized."""

    def dequantize(base: Any) -> torch.Tensor:
        made.append(base.weight.numel())
        return dequantized_weight(base)

    return fuse_adapters(model, decoder_of(model), torch.float32, dequantize)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("recomputed", [0, 2, 3])
def test_weights_that_stay_dequantized_change_nothing(recomputed: int, kept: int) -> None:
    model, made = adapted(quantised=True), list[int]()
    recompute_layers(model.get_base_model(), recomputed, False)
    adapters, layers = expanding(model, made), decoder_layers(model)
    expected, usual = computed(model), len(made)
    made.clear()
    adapters.keep_dequantized(layers[:kept])
    assert made == [], "nothing is dequantized before the next step"
    loss, gradient = computed(model)
    assert (loss, float((gradient - expected[1]).abs().max())) == (expected[0], 0.0)
    first = len(made)
    made.clear()
    computed(model)
    again = len(made)
    assert first == again + kept * SEVEN // 3
    assert (again == 0) == (kept == 3)
    assert again < usual
    adapters.keep_dequantized(())
    made.clear()
    assert computed(model)[0] == expected[0]
    assert len(made) == usual


@pytest.mark.filterwarnings("default")
def test_dequantized_weights_make_room_until_the_next_step() -> None:
    model, made = adapted(quantised=True), list[int]()
    adapters = expanding(model, made)
    adapters.keep_dequantized(decoder_layers(model))
    assert not adapters.release()
    model.eval()
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)
    with torch.no_grad():
        loss_sum.token_losses(pack(random_examples(4), CPU))
    assert made == [], "held-out rows need none"
    model.train()
    loss, _ = computed(model)
    assert len(made) == SEVEN
    assert adapters.release()
    assert not adapters.release()
    assert computed(model)[0] == loss
    assert len(made) == 2 * SEVEN
    adapters.remove()
    assert not adapters.release()
