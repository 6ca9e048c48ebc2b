"""What is dropped follows from where a value stands: any cut of a step, any layer computed again, drops the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.adapted import adapted
from support.models import PlainExample, random_examples

from qlora_core.backends.packed_loss import PackedLoss, packed_loss
from qlora_core.kernels.keyed_dropout import KeyedDropout, Places, drop, kept, key_dropout, lowbias
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.model.packing import Packed, pack
from qlora_core.train.step import StepRunner

CPU = torch.device("cpu")
SHARE = 0.3


def rows(count: int = 400) -> torch.Tensor:
    return lowbias(torch.arange(count, dtype=torch.int32))


def placed(places: tuple[int, ...], step: int = 1, lengths: tuple[int, ...] = (5, 7)) -> Packed:
    examples = [PlainExample([*range(length)], [True] * length) for length in lengths]
    return replace(pack(examples, CPU), places=places, step=step)


def test_the_hash_is_the_published_one() -> None:
    """lowbias32 of 1 and of 2**31, worked out with Python's own integers."""

    def plain(x: int) -> int:
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    numbers = [0, 1, 2, 77, 2**31 - 1, 2**31, 2**32 - 1]
    signed = torch.tensor([n - 2**32 if n >= 2**31 else n for n in numbers], dtype=torch.int32)
    assert [n % 2**32 for n in lowbias(signed).tolist()] == [plain(n) for n in numbers]


def test_the_share_of_zeros_is_the_one_asked_for_and_nothing_repeats() -> None:
    stays = kept(rows(), 300, SHARE).float()
    assert float(stays.mean()) == pytest.approx(1 - SHARE, abs=0.005)  # 120,000 draws: a deviation is 0.0013
    for along in (0, 1):
        assert float(stays.mean(along).std()) == pytest.approx(
            (SHARE * (1 - SHARE) / stays.shape[along]) ** 0.5, rel=0.2
        )
    assert len({tuple(row) for row in stays.bool().tolist()}) == 400
    centred = stays - stays.mean()
    near = (centred[1:] * centred[:-1]).mean() / centred.square().mean()
    assert abs(float(near)) < 0.02


def test_what_stays_is_scaled_and_gradients_go_the_same_way() -> None:
    places = Places(3, CPU)
    layer = KeyedDropout(SHARE, places, "layer").train()
    places.at(placed((0, 1)))
    x = torch.randn(1, 12, 64, requires_grad=True)
    out = layer(x)
    stays = out != 0
    assert torch.equal(out[stays], (x * (1 / (1 - SHARE)))[stays])
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(gradient != 0, stays)
    assert torch.equal(layer.eval()(x), x)


def test_numbers_differ_by_seed_step_place_position_and_layer() -> None:
    def of(seed: int = 3, places: tuple[int, ...] = (0, 1), step: int = 1, name: str = "a") -> torch.Tensor:
        held = Places(seed, CPU)
        layer = KeyedDropout(SHARE, held, name).train()
        held.at(placed(places, step))
        dropped: torch.Tensor = layer(torch.ones(12, 64))
        return dropped

    first = of()
    assert torch.equal(first, of())
    for other in (of(seed=4), of(places=(2, 3)), of(step=2), of(name="b")):
        assert 0.3 < float(((first != 0) != (other != 0)).float().mean()) < 0.55
    assert not torch.equal(first[0], first[1])


def test_a_row_drops_the_same_wherever_it_lies_in_a_micro_batch() -> None:
    def of(places: tuple[int, ...], lengths: tuple[int, ...]) -> torch.Tensor:
        held = Places(3, CPU)
        held.layer("a")
        held.at(placed(places, lengths=lengths))
        assert held.rows is not None
        return held.rows[0]

    whole = of((0, 1, 2), (5, 7, 3))
    assert torch.equal(of((2, 0), (3, 5)), torch.cat([whole[12:], whole[:5]]))
    assert torch.equal(of((1,), (7,)), whole[5:12])


def test_some_rows_at_a_time_drop_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(400, 300)
    whole = drop(x, rows(), SHARE)
    monkeypatch.setattr("qlora_core.kernels.keyed_dropout.MOST_HASHED", {"cpu": 700})
    assert torch.equal(drop(x, rows(), SHARE), whole)


def dropping_loss() -> tuple[Any, PackedLoss]:
    model = adapted(lora_dropout=SHARE)
    places = key_dropout(model, 11, CPU, print)
    loss = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=64, autocast_dtype=None, places=places)
    return model.train(), loss


def test_gradients_are_equal_however_a_step_is_cut_and_recomputed() -> None:
    model, loss = dropping_loss()
    runner = StepRunner(backward=lambda total: total.backward(), device=CPU, pin_memory=False)
    examples, found = random_examples(6), []
    for token_budget, recomputed, step in ((4096, 0, 5), (1, 0, 5), (50, 3, 5), (4096, 0, 6)):
        recompute_layers(model.get_base_model(), recomputed, preserve_rng_state=False)
        model.zero_grad()
        total = float(runner.run(examples, loss, token_budget, step).loss)
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((total, grads))
    (whole, gradient), *others, (other_step, _) = found
    for total, grads in others:
        assert total == pytest.approx(whole, rel=1e-5)
        assert float((grads - gradient).norm() / gradient.norm()) < 1e-5
    assert other_step != pytest.approx(whole, rel=1e-4)
