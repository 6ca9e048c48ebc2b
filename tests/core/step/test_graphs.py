"""Padding to a shape changes nothing, and what a graph adds to the gradients is what a usual step adds.

Capturing needs a card (tests/gpu); here a stand-in runs the same computation on the same fixed tensors again.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.adapted import adapted, assert_same, computed
from support.models import FAMILIES, PlainExample, random_examples

from qlora_core.step.forward import PackedLoss, packed_loss
from qlora_core.step.graphs import (
    MOST_GRAPHS,
    Bucket,
    Decode,
    Gradients,
    GraphedDecoder,
    Inputs,
    bucket_of,
)
from qlora_core.step.packing import pack

CPU = torch.device("cpu")


def example(length: int) -> PlainExample:
    return PlainExample([3 + i % 300 for i in range(length)], [i > length // 2 for i in range(length)])


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([10], 4096, (256, 8, 256)),
        ([300, 300, 90], 4096, (768, 8, 512)),
        ([300, 300, 180], 4096, (1024, 8, 512)),
        ([2000, 1900], 4000, (4000, 8, 2048)),
        ([40] * 30, 4096, (1536, 32, 256)),
        ([40] * 31, 4096, (1536, 64, 256)),
        ([100, 5], 100, None),
        ([9000], 20_000, None),
        ([4] * 200, 4096, None),
    ],
)
def test_the_shape_of_a_micro_batch(lengths: list[int], most: int, expected: tuple[int, int, int] | None) -> None:
    bucket = bucket_of(pack([example(length) for length in lengths], CPU), most)
    assert (bucket and (bucket.tokens, bucket.sequences, bucket.longest)) == expected


@pytest.mark.parametrize("seed", range(30))
def test_every_padded_micro_batch_is_whole(seed: int) -> None:
    packed = pack(random_examples(1 + seed % 9, seed=seed, longest=60 * (1 + seed % 7)), CPU)
    bucket = bucket_of(packed, 4096)
    assert bucket is not None
    inputs = Inputs(bucket, CPU)
    inputs.load(pack(random_examples(3, seed=99), CPU))  # what was in it before must not matter
    inputs.load(packed)
    ends = inputs.packed.boundaries.tolist()
    assert ends[: len(packed.boundaries)] == packed.boundaries.tolist()
    assert ends == sorted(ends)
    assert (ends[-1], len(ends)) == (bucket.tokens, bucket.sequences + 1)
    lengths = [b - a for a, b in pairwise(ends)]
    assert max(lengths) <= bucket.longest
    positions = [position for length in lengths for position in range(length)]
    assert inputs.packed.position_ids[0].tolist() == positions


def scorer(model: Any) -> PackedLoss:
    return packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_padded_tail_changes_neither_loss_nor_gradient(family: str) -> None:
    model, examples = adapted(family), random_examples(5, seed=2)
    expected = computed(model, examples=examples)
    packed, bucket = pack(examples, CPU), Bucket(tokens=384, sequences=16, longest=64)
    inputs = Inputs(bucket, CPU)
    inputs.load(packed)
    padded = replace(inputs.packed, scored_at=packed.scored_at, targets=packed.targets)
    loss = scorer(model)(padded)
    loss.backward()
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    assert_same((float(loss.detach()), flat), expected, 5e-6)


class EagerGraph:
    """Computes on fixed tensors, as a graph does."""

    def __init__(self, decode: Decode, inputs: Inputs, gradients: Gradients, pool: Any) -> None:
        self._decode, self._inputs, self._gradients = decode, inputs, gradients
        self.hidden = decode(inputs.packed).detach()
        self.grad_hidden = torch.full_like(self.hidden, float("nan"))
        self._computed: torch.Tensor | None = None

    def forward(self) -> None:
        with torch.enable_grad():
            self._computed = self._decode(self._inputs.packed)
        self.hidden.copy_(self._computed.detach())

    def backward(self) -> None:
        assert self._computed is not None
        parameters = self._gradients.parameters
        self._gradients.add(torch.autograd.grad(self._computed, parameters, self.grad_hidden, allow_unused=True))
        self._computed = None


def graphed(model: Any, capture: Callable[..., Any] = EagerGraph, warned: list[str] | None = None) -> PackedLoss:
    usual = scorer(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    told = warned if warned is not None else []
    return replace(usual, decode=GraphedDecoder(usual.hidden_states, trained, 4096, told.append, capture=capture))


def step(model: Any, score: PackedLoss, seeds: list[int]) -> tuple[float, torch.Tensor]:
    """Micro-batches of one step, one after the other."""
    total = 0.0
    for seed in seeds:
        loss = score(pack(random_examples(3, seed=seed), CPU)) / 7
        loss.backward()
        total += float(loss.detach())
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return total, flat.clone()


def test_steps_of_graphs_equal_usual_steps() -> None:
    model = adapted()
    steps = [[1, 2, 3], [4], [5, 6]]
    expected = []
    for seeds in steps:
        expected.append(step(model, scorer(model), seeds))
        model.zero_grad(set_to_none=True)
    score = graphed(model)
    decoder = score.decode
    assert isinstance(decoder, GraphedDecoder)
    for number, (seeds, wanted) in enumerate(zip(steps, expected, strict=True)):
        assert_same(step(model, score, seeds), wanted, 5e-6)  # the first micro-batch of all has no graph yet
        model.zero_grad(set_to_none=number % 2 == 0)
    assert decoder.num_graphs == 1


def test_a_head_that_is_trained_too_keeps_its_gradient() -> None:
    model = adapted(target_modules=["q_proj", "lm_head"])
    expected = step(model, scorer(model), [1, 2, 3])
    model.zero_grad(set_to_none=True)
    assert_same(step(model, graphed(model), [1, 2, 3]), expected, 5e-6)


def test_held_out_rows_need_no_graph() -> None:
    model = adapted()
    score = graphed(model)
    packed = pack(random_examples(3), CPU)
    for _ in range(3):
        score.token_losses(packed)
    assert isinstance(score.decode, GraphedDecoder)
    assert score.decode.num_graphs == 0


def test_a_capture_that_fails_is_told_once_and_changes_nothing() -> None:
    def failing(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = adapted()
    expected = step(model, scorer(model), [1, 2, 3, 4])
    model.zero_grad(set_to_none=True)
    warned: list[str] = []
    assert_same(step(model, graphed(model, failing, warned), [1, 2, 3, 4]), expected, 5e-6)
    assert len(warned) == 1
    assert "not permitted" in warned[0]


def test_no_more_graphs_than_memory_was_meant_for() -> None:
    model = adapted()
    score = graphed(model)
    for length in (100, 300, 500, 700, 900, 1100, 1600, 2100):
        for _ in range(2):
            packed = pack([example(n) for n in (length,)], CPU)
            packed = replace(packed, input_ids=packed.input_ids % 300)
            assert score.decode is not None
            score.decode(replace(packed, position_ids=packed.position_ids % 500))
    assert isinstance(score.decode, GraphedDecoder)
    assert score.decode.num_graphs == MOST_GRAPHS
