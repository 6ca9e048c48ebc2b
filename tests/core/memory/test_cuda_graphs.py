"""Padding to a shape changes nothing, and what a graph adds to the gradients is what a usual step adds.

Capturing needs a card (tests/gpu); here a stand-in runs the same computation on the same fixed tensors again.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.adapted import adapted, assert_same, computed
from support.models import FAMILIES, PlainExample, random_examples

from qlora_core.backends.packed_loss import PackedLoss, packed_loss
from qlora_core.execution.graph_sizes import NUM_SIZES, graph_sizes, padded_size
from qlora_core.memory.cuda_graphs import (
    CAPTURE_COSTS,
    Decode,
    Gradients,
    GraphedDecoder,
    GraphShape,
    Inputs,
    graph_shape,
)
from qlora_core.model.packing import pack

CPU = torch.device("cpu")


def example(length: int) -> PlainExample:
    return PlainExample([3 + i % 300 for i in range(length)], [i > length // 2 for i in range(length)])


@pytest.mark.parametrize(
    ("lengths", "tokens", "expected"),
    [
        ([10], 256, (16, 256)),
        ([300, 300, 90], 704, (16, 512)),
        ([2000, 1900], 3904, (16, 2048)),
        ([40] * 15, 640, (16, 256)),
        ([40] * 16, 704, (32, 256)),
        ([4] * 200, 1024, (256, 256)),
    ],
)
def test_the_shape_of_a_micro_batch(lengths: list[int], tokens: int, expected: tuple[int, int]) -> None:
    packed = pack([example(length) for length in lengths], CPU)
    shape = graph_shape(packed, tokens)
    assert (shape.sequences, shape.longest) == expected
    assert shape.takes(packed)
    assert not replace(shape, sequences=len(lengths) - 1).takes(packed)


def test_a_shape_never_shrinks() -> None:
    large = GraphShape(tokens=512, sequences=64, longest=1024)
    assert graph_shape(pack([example(10)], CPU), 512, large) == large


@pytest.mark.parametrize("seed", range(30))
def test_every_padded_micro_batch_is_whole(seed: int) -> None:
    packed = pack(random_examples(1 + seed % 9, seed=seed, longest=60 * (1 + seed % 7)), CPU)
    shape = graph_shape(packed, padded_size(packed.num_tokens, 4096))
    assert shape.takes(packed)
    inputs = Inputs(shape, CPU)
    inputs.load(pack([example(shape.tokens // 2)] * 2, CPU))  # what was in it before must not matter
    inputs.load(packed)
    ends = inputs.packed.boundaries.tolist()
    assert ends[: len(packed.boundaries)] == packed.boundaries.tolist()
    assert ends == sorted(ends)
    assert (ends[-1], len(ends)) == (shape.tokens, shape.sequences + 1)
    lengths = [b - a for a, b in pairwise(ends)]
    assert max(lengths) <= shape.longest
    positions = [position for length in lengths for position in range(length)]
    assert inputs.packed.position_ids[0].tolist() == positions


def loss_function(model: Any) -> PackedLoss:
    return packed_loss(model, attention="sdpa", kernel="chunked", chunk_tokens=16, autocast_dtype=None)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_padded_tail_changes_neither_loss_nor_gradient(family: str) -> None:
    model, examples = adapted(family), random_examples(5, seed=2)
    expected = computed(model, examples=examples)
    packed, shape = pack(examples, CPU), GraphShape(tokens=384, sequences=16, longest=64)
    inputs = Inputs(shape, CPU)
    inputs.load(packed)
    padded = replace(inputs.packed, supervised_at=packed.supervised_at, targets=packed.targets)
    loss = loss_function(model)(padded)
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
        self.replays = 0

    def forward(self) -> None:
        self.replays += 1
        with torch.enable_grad():
            self._computed = self._decode(self._inputs.packed)
        self.hidden.copy_(self._computed.detach())

    def backward(self) -> None:
        assert self._computed is not None
        parameters = self._gradients.parameters
        self._gradients.add(torch.autograd.grad(self._computed, parameters, self.grad_hidden, allow_unused=True))
        self._computed = None


def graphed(model: Any, capture: Callable[..., Any] = EagerGraph, warned: list[str] | None = None) -> PackedLoss:
    usual = loss_function(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    told = warned if warned is not None else []
    return replace(usual, decode=GraphedDecoder(usual.hidden_states, trained, 4096, told.append, capture=capture))


def step(model: Any, loss_sum: PackedLoss, seeds: list[int]) -> tuple[float, torch.Tensor]:
    """Micro-batches of one step, one after the other."""
    total = 0.0
    for seed in seeds:
        loss = loss_sum(pack(random_examples(3, seed=seed), CPU)) / 7
        loss.backward()
        total += float(loss.detach())
    flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return total, flat.clone()


def test_steps_of_graphs_equal_usual_steps() -> None:
    model = adapted()
    steps = [[1, 2, 3], [4], [5, 6]]
    expected = []
    for seeds in steps:
        expected.append(step(model, loss_function(model), seeds))
        model.zero_grad(set_to_none=True)
    loss_sum = graphed(model)
    decoder = loss_sum.decode
    assert isinstance(decoder, GraphedDecoder)
    for number, (seeds, wanted) in enumerate(zip(steps, expected, strict=True)):
        assert_same(step(model, loss_sum, seeds), wanted, 5e-6)
        model.zero_grad(set_to_none=number % 2 == 0)
    assert decoder.num_graphs == 2  # the largest, and the size of these


def test_a_head_that_is_trained_too_keeps_its_gradient() -> None:
    model = adapted(target_modules=["q_proj", "lm_head"])
    expected = step(model, loss_function(model), [1, 2, 3])
    model.zero_grad(set_to_none=True)
    assert_same(step(model, graphed(model), [1, 2, 3]), expected, 5e-6)


def test_held_out_rows_make_no_graph_and_use_one_that_is_there() -> None:
    model = adapted()
    loss_sum, packed = graphed(model), pack(random_examples(3), CPU)
    expected = loss_sum.token_losses(packed)
    assert isinstance(loss_sum.decode, GraphedDecoder)
    assert loss_sum.decode.num_graphs == 0
    step(model, loss_sum, [5])
    before = [graph.replays for _, _, graph in loss_sum.decode._graphs.values() if isinstance(graph, EagerGraph)]
    torch.testing.assert_close(loss_sum.token_losses(packed), expected, rtol=1e-5, atol=1e-5)
    after = [graph.replays for _, _, graph in loss_sum.decode._graphs.values() if isinstance(graph, EagerGraph)]
    assert sum(after) == sum(before) + 1


def test_a_capture_that_fails_is_told_once_and_changes_nothing() -> None:
    def failing(*arguments: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model = adapted()
    expected = step(model, loss_function(model), [1, 2, 3, 4])
    model.zero_grad(set_to_none=True)
    warned: list[str] = []
    assert_same(step(model, graphed(model, failing, warned), [1, 2, 3, 4]), expected, 5e-6)
    assert len(warned) == 1
    assert "not permitted" in warned[0]


def capturing(model: Any, fail_at: int = 10**9) -> tuple[PackedLoss, list[int]]:
    """A graphed loss_function and the sizes that it captures, in order; one that is too large runs out of memory."""
    captured: list[int] = []

    def capture(decode: Decode, inputs: Inputs, gradients: Gradients, pool: Any) -> EagerGraph:
        captured.append(inputs.packed.num_tokens)
        if inputs.packed.num_tokens >= fail_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return EagerGraph(decode, inputs, gradients, pool)

    return graphed(model, capture), captured


def lengths(loss_sum: PackedLoss, *counts: int) -> None:
    for count in counts:
        packed = pack([example(count)], CPU)
        packed = replace(packed, input_ids=packed.input_ids % 300, position_ids=packed.position_ids % 500)
        assert loss_sum.decode is not None
        loss_sum.decode(packed)


def test_the_largest_size_is_captured_first_and_each_once() -> None:
    loss_sum, captured = capturing(adapted())
    lengths(loss_sum, 3000, 3100, 700, 2100, 710, 4000)
    assert captured == [4096, 3456, 768]  # for 2,100 tokens the one of 3,456 does at first
    assert captured[0] == graph_sizes(4096)[0]


def test_another_size_is_captured_once_its_padding_would_have_paid_for_it() -> None:
    loss_sum, captured = capturing(adapted())
    lengths(loss_sum, 4000, 700, 3000)
    wasted = 0
    while 2496 not in captured:
        assert wasted <= CAPTURE_COSTS * 4096
        wasted += 3456 - 2496
        lengths(loss_sum, 2100)
    assert wasted > CAPTURE_COSTS * 4096
    lengths(loss_sum, *[2100] * 9, *[4000] * 9)
    assert captured == [4096, 768, 3456, 2496]


def test_graphs_that_made_room_are_captured_again_and_compute_the_same() -> None:
    model = adapted()
    expected = step(model, loss_function(model), [1, 2, 3, 4])
    model.zero_grad(set_to_none=True)
    loss_sum, captured = capturing(model)
    assert not loss_sum.release()
    assert_same(step(model, loss_sum, [1, 2, 3, 4]), expected, 5e-6)
    before = list(captured)
    assert loss_sum.release()
    assert not loss_sum.release()
    model.zero_grad(set_to_none=True)
    assert_same(step(model, loss_sum, [1, 2, 3, 4]), expected, 5e-6)
    assert captured == before * 2


def test_a_longer_example_than_there_should_be_raises_the_largest_size() -> None:
    loss_sum, captured = capturing(adapted())
    lengths(loss_sum, 4096, 5000, 5000, 4096)
    assert captured == [4096, 5056, 4224]


def test_beyond_the_largest_graphs_everything_is_as_usual() -> None:
    loss_sum, captured = capturing(adapted())
    assert isinstance(loss_sum.decode, GraphedDecoder)
    lengths(loss_sum, 500, 9000, 500)
    assert (len(captured), loss_sum.decode.num_graphs) == (2, 0)


def test_running_out_of_memory_while_capturing_is_the_steps_to_handle() -> None:
    model = adapted()
    loss_sum, _ = capturing(model, fail_at=4096)
    with pytest.raises(torch.OutOfMemoryError):
        step(model, loss_sum, [1])
    assert isinstance(loss_sum.decode, GraphedDecoder)
    assert loss_sum.decode.num_graphs == 0


@given(st.integers(1, 9000), st.integers(1, 9000))
def test_sizes_take_everything_with_little_padding(most: int, tokens: int) -> None:
    found = graph_sizes(most)
    assert list(found) == sorted(found, reverse=True)
    assert len(found) <= NUM_SIZES
    assert most <= found[0] < max(256, most) + 64
    if tokens <= found[0]:
        size = padded_size(tokens, most)
        assert size in found
        assert tokens <= size <= max(found[-1], 1.19 * tokens + 64)
