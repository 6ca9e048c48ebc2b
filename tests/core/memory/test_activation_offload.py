"""Inputs of recomputing layers in main memory: the same gradient, and nothing left behind."""

from typing import Any

import pytest
import torch
from support.adapted import CPU, adapted, assert_same, computed
from support.models import random_examples

from qlora_core.backends.packed_loss import packed_loss
from qlora_core.execution.pinned_memory import pinned_bytes
from qlora_core.memory import activation_offload
from qlora_core.memory.activation_offload import Offload
from qlora_core.memory.checkpointed_layers import recompute_layers
from qlora_core.model.packing import pack


class Copies:
    """Copies as a card makes them: nothing has arrived before somebody waited for it."""

    def __init__(self, device: torch.device) -> None:
        self.open: dict[int, Any] = {}
        self.begun = 0

    def begin(self, target: torch.Tensor, source: torch.Tensor) -> int:
        self.begun += 1
        self.open[self.begun] = (target, source)
        return self.begun

    def wait(self, number: int) -> None:
        for earlier in sorted(n for n in self.open if n <= number):
            target, source = self.open.pop(earlier)
            target.copy_(source)


@pytest.fixture
def owners(monkeypatch: pytest.MonkeyPatch) -> list[Offload]:
    made: list[Offload] = []

    class Watched(Offload):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            made.append(self)

    monkeypatch.setattr(activation_offload, "_Copies", Copies)
    monkeypatch.setattr("qlora_core.memory.checkpointed_layers.Offload", Watched)
    return made


@pytest.mark.parametrize("recomputed", [1, 2, 3])
@pytest.mark.parametrize("family", ["qwen3", "gemma3_text"])
def test_the_same_gradient(family: str, recomputed: int, owners: list[Offload]) -> None:
    model = adapted(family)
    expected = computed(model)
    recompute_layers(model.get_base_model(), recomputed, False, offload=True)
    for _ in range(3):
        assert_same(computed(model), expected, 1e-6)
    copies: Any = owners[0]._copies
    assert copies.begun == 3 * (2 * recomputed - 1)  # the last that leaves need not come back


@pytest.mark.parametrize("family", ["qwen3"])
def test_with_the_copies_of_this_device(family: str) -> None:
    model = adapted(family)
    expected = computed(model)
    recompute_layers(model.get_base_model(), 3, False, offload=True)
    assert_same(computed(model), expected, 1e-6)


def test_main_memory_is_used_again(owners: list[Offload]) -> None:
    model = adapted()
    recompute_layers(model.get_base_model(), 3, False, offload=True)
    for seed in range(4):
        computed(model, examples=random_examples(3 + seed, seed=seed))
    owner = owners[0]
    before = {buffer.data_ptr() for buffer in owner._free}
    assert len(before) >= 3
    computed(model, examples=random_examples(2, seed=9))
    assert {buffer.data_ptr() for buffer in owner._free} == before


def test_a_forward_without_backward_leaves_nothing(owners: list[Offload]) -> None:
    model = adapted()
    expected = computed(model)
    recompute_layers(model.get_base_model(), 3, False, offload=True)
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)
    packed = pack(random_examples(5, seed=4), CPU)
    computed(model)
    before = len(owners[0]._free)
    loss = loss_sum(packed)
    assert len(owners[0]._free) < before
    del loss
    assert_same(computed(model), expected, 1e-6)
    assert len(owners[0]._free) == before


def test_places_in_main_memory_are_as_many_and_as_large_as_planned() -> None:
    for size in (512, 3 * 512, 5 * 512, 700, 13):
        owner = Offload(CPU)
        places = [owner.take(size) for _ in range(20)]
        aligned = -(-size // activation_offload.ALIGNED) * activation_offload.ALIGNED
        held = {place.untyped_storage().data_ptr(): place.untyped_storage().nbytes() for place in places}
        assert sum(held.values()) == pinned_bytes(aligned, 20)
        assert sum(held.values()) < 1.5 * 20 * aligned
        assert len({place.data_ptr() for place in places}) == 20
        assert all(
            place.numel() >= size and place.storage_offset() % activation_offload.ALIGNED == 0 for place in places
        )


def test_two_forwards_at_once(owners: list[Offload]) -> None:
    model = adapted()
    loss_sum = packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)
    batches = [pack(random_examples(4, seed=seed), CPU) for seed in (1, 2)]

    def gradient() -> torch.Tensor:
        first, second = (loss_sum(batch) for batch in batches)
        first.backward()
        second.backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        model.zero_grad(set_to_none=True)
        return flat

    expected = gradient()
    recompute_layers(model.get_base_model(), 2, False, offload=True)
    assert torch.allclose(gradient(), expected, rtol=1e-5, atol=1e-7)


def test_what_came_and_was_not_needed_is_waited_for(owners: list[Offload]) -> None:
    """Its place on the card may be given away as soon as it is gone."""
    owner = Offload(CPU)
    owner._copies = Copies(CPU)  # type: ignore[assignment]
    first, second, third = (owner.pack(torch.full((4,), float(i))) for i in range(3))
    assert torch.equal(owner.unpack(third), torch.full((4,), 2.0))
    copies: Any = owner._copies
    assert list(copies.open) == [4]  # the second is on its way
    del second
    assert not copies.open
    assert torch.equal(owner.unpack(first), torch.zeros(4))
