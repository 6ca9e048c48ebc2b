"""The decoder's forward and backward as CUDA graphs: one launch each instead of thousands.

A graph computes one shape only, so micro-batches are padded to a few of them: a tail of sequences of their own that
nothing is supervised on and no other sequence sees, hence of zero gradient. The loss stays outside, on real tokens.

Shape legend: T tokens of a micro-batch, H hidden size; a shape has at least as many of everything.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qlora_core.execution.graph_sizes import (
    LARGEST_GRAPHED_TOKENS,
    SMALLEST_TOKENS,
    graph_sizes,
    padded_size,
    power_of_two,
)
from qlora_core.memory.oom import is_out_of_memory
from qlora_core.model.packing import Packed
from qlora_core.session.fallback import failure

FEWEST_SEQUENCES = 16
SHORTEST_LONGEST = 256
CAPTURED_AT_ONCE = 3
"""Graphs that are captured when first asked for: the sizes that come first are common ones."""
CAPTURE_COSTS = 2
"""How often the largest graph runs while another is captured (0.1 to 0.2 s for an 8B on an H200)."""

Decode = Callable[[Packed], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphShape:
    """A shape: tokens, sequences (the tail's among them), and the longest that one of them may be."""

    tokens: int
    sequences: int
    longest: int

    def takes(self, packed: Packed) -> bool:
        """Whether a micro-batch fits in, with the sequences that fill it up."""
        tail = -(-(self.tokens - packed.num_tokens) // self.longest)
        here = packed.num_tokens <= self.tokens and packed.longest <= self.longest
        return here and len(packed.boundaries) - 1 + tail <= self.sequences


def graph_shape(packed: Packed, tokens: int, within: GraphShape | None = None) -> GraphShape:
    """A shape of ``tokens`` tokens that takes a micro-batch; never one of less than ``within`` in anything else."""
    least = (within.sequences, within.longest) if within else (FEWEST_SEQUENCES, SHORTEST_LONGEST)
    longest = max(least[1], power_of_two(packed.longest))
    tail = -(-(tokens - packed.num_tokens) // longest)
    sequences = max(least[0], power_of_two(len(packed.boundaries) - 1 + tail))
    return GraphShape(tokens=tokens, sequences=sequences, longest=longest)


class Inputs:
    """The tensors that a graph reads, always at the same place. ``packed`` is the padded micro-batch in them."""

    def __init__(self, shape: GraphShape, device: torch.device) -> None:
        zeros = torch.zeros(1, shape.tokens, dtype=torch.long, device=device)
        self._shape = shape
        self._steps = torch.arange(1, shape.sequences + 1, dtype=torch.int32, device=device) * shape.longest
        self._ramp = torch.arange(shape.tokens, device=device) % shape.longest
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        self.packed = Packed(
            input_ids=zeros,
            position_ids=zeros.clone(),
            boundaries=torch.zeros(shape.sequences + 1, dtype=torch.int32, device=device),
            longest=shape.longest,
            supervised_at=nothing,
            targets=nothing,
        )

    def load(self, packed: Packed) -> None:
        """Put a micro-batch in; which ids the tail has does not matter."""
        here, tokens, ends = self.packed, packed.num_tokens, len(packed.boundaries)
        here.input_ids[:, :tokens].copy_(packed.input_ids)
        here.position_ids[:, :tokens].copy_(packed.position_ids)
        here.position_ids[0, tokens:].copy_(self._ramp[: self._shape.tokens - tokens])
        here.boundaries[:ends].copy_(packed.boundaries)
        tail = self._steps[: len(here.boundaries) - ends] + tokens
        here.boundaries[ends:].copy_(tail.clamp_max_(self._shape.tokens))


class Graph(Protocol):
    """A shape's forward and backward, ready to be run again on what its inputs hold by then.

    ``hidden`` is the result of the forward, ``grad_hidden`` what the backward starts from (both T x H).
    """

    hidden: Tensor
    grad_hidden: Tensor

    def forward(self) -> None:
        """Compute ``hidden`` from the inputs."""

    def backward(self) -> None:
        """Add the gradients of the trained values to their buffers; only after ``forward``, and once."""


class Gradients:
    """Buffers that graphs add gradients to; they are the parameters' ``grad`` as soon as a graph ran."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.buffers = [torch.zeros_like(parameter) for parameter in self.parameters]

    def attach(self) -> None:
        """Take over what is in ``grad``, or start from zero after it was dropped."""
        loose = [(p, b) for p, b in zip(self.parameters, self.buffers, strict=True) if p.grad is not b]
        empty = [buffer for parameter, buffer in loose if parameter.grad is None]
        if empty:
            torch._foreach_zero_(empty)
        for parameter, buffer in loose:
            if parameter.grad is not None:
                buffer.copy_(parameter.grad)
            parameter.grad = buffer

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add the gradients of those parameters that have one."""
        pairs = [(b, g) for b, g in zip(self.buffers, gradients, strict=True) if g is not None]
        torch._foreach_add_([buffer for buffer, _ in pairs], [gradient for _, gradient in pairs])


class Pool:
    """What the graphs of a decoder share: the memory they compute in, and the tensors that a forward's result and a
    backward's start lie in.

    Sharing is safe because a backward always follows its own forward, with no other graph between them.
    """

    def __init__(self, most_tokens: int, decode: Decode, gradients: Gradients, device: torch.device) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        states = self._warm_up(decode, gradients, device)
        self.hidden = states.new_empty(most_tokens, states.shape[1])
        self.grad_hidden = torch.zeros_like(self.hidden)

    @staticmethod
    def _warm_up(decode: Decode, gradients: Gradients, device: torch.device) -> Tensor:
        """A small micro-batch, so that nothing is compiled or set up while capturing."""
        inputs = Inputs(GraphShape(tokens=SMALLEST_TOKENS, sequences=1, longest=SMALLEST_TOKENS), device)
        inputs.packed.boundaries[1:] = SMALLEST_TOKENS
        stream = _stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            hidden = decode(inputs.packed)
            _gradients(hidden, gradients, torch.zeros_like(hidden))
        torch.cuda.current_stream().wait_stream(stream)
        return hidden.detach()


@cache
def _stream() -> Any:
    """One for all captures: libraries keep workspaces for each stream that they ever saw."""
    return torch.cuda.Stream()


Capture = Callable[[Decode, Inputs, Gradients, Any], Graph]


class CudaGraph:
    """A forward and a backward captured on the card."""

    def __init__(self, decode: Decode, inputs: Inputs, gradients: Gradients, pool: Pool) -> None:
        tokens = inputs.packed.num_tokens
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with _captured(self._forward, pool):
            hidden = decode(inputs.packed)
            self.hidden, self.grad_hidden = pool.hidden[:tokens], pool.grad_hidden[:tokens]
            self.hidden.copy_(hidden.detach())
        with _captured(self._backward, pool):
            gradients.add(_gradients(hidden, gradients, self.grad_hidden))

    def forward(self) -> None:
        """Compute ``hidden`` from the inputs."""
        self._forward.replay()

    def backward(self) -> None:
        """Add the gradients to their buffers."""
        self._backward.replay()


@contextmanager
def _captured(graph: Any, pool: Pool) -> Iterator[None]:
    """Capture what is launched inside. Ending a capture that ran out of memory may raise an error of its own."""
    problem: list[BaseException] = []
    try:
        with torch.cuda.graph(graph, pool=pool.handle, stream=_stream(), capture_error_mode="thread_local"):
            try:
                yield
            except RuntimeError as error:
                problem.append(error)
                raise
    except RuntimeError as error:
        if problem and is_out_of_memory(problem[0]) and not is_out_of_memory(error):
            raise problem[0] from None
        raise


def _gradients(hidden: Tensor, gradients: Gradients, grad_hidden: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(hidden, gradients.parameters, grad_hidden, allow_unused=True)


class GraphedDecoder:
    """Hidden states (T x H) of a micro-batch by a graph of its size, or ``None`` where it is to be computed as usual.

    The largest graph is captured first: all others find room in its memory. Nothing that is trained on is computed
    as usual beside it, which would take that memory a second time.

    Args:
        decode: hidden states of a micro-batch as usual.
        parameters: what is trained.
        most_tokens: tokens that a micro-batch may have; an example that is longer raises it.
        warn: told once if capturing fails; everything is then computed as usual.
    """

    def __init__(
        self,
        decode: Decode,
        parameters: Sequence[nn.Parameter],
        most_tokens: int,
        warn: Callable[[str], None],
        capture: Capture = CudaGraph,
    ) -> None:
        self._decode, self._most_tokens, self._warn, self._capture = decode, most_tokens, warn, capture
        self._parameters = parameters
        self._gradients: Gradients | None = None
        self._graphs: dict[int, tuple[GraphShape, Inputs, Graph]] = {}
        self._wasted: Counter[int] = Counter()
        self._failed = False
        self.captures = 0
        self._pool: Pool | None = None
        self._anchor = torch.zeros((), requires_grad=True)

    @property
    def num_graphs(self) -> int:
        """Sizes that have one."""
        return len(self._graphs)

    def release(self) -> bool:
        """Let go of all graphs and their memory; they are captured again when needed. False where there are none."""
        held = bool(self._graphs)
        self._graphs.clear()
        self._pool = None
        return held

    def __call__(self, packed: Packed) -> Tensor | None:
        """T x H, differentiable: its backward fills the parameters' gradients."""
        size = self._size_for(packed) if torch.is_grad_enabled() else self._taking(packed)
        if size is None:
            return None
        _, inputs, graph = self._graphs[size]
        inputs.load(packed)
        hidden: Tensor = _Replayed.apply(self._anchor, graph, self._gradients, packed.num_tokens)  # type: ignore[no-untyped-call]
        return hidden

    def _taking(self, packed: Packed) -> int | None:
        """The smallest size that there is a graph of, and that takes a micro-batch."""
        return min((size for size, (shape, _, _) in self._graphs.items() if shape.takes(packed)), default=None)

    def _size_for(self, packed: Packed) -> int | None:
        """The size whose graph computes a micro-batch: its own, or a larger one while a capture would not pay."""
        if packed.num_tokens > self._most_tokens:
            self._most_tokens = packed.num_tokens
            self._graphs.clear()
        if self._failed or self._most_tokens > LARGEST_GRAPHED_TOKENS:
            return None
        largest, size = graph_sizes(self._most_tokens)[0], padded_size(packed.num_tokens, self._most_tokens)
        if largest not in self._graphs and not self._captured(largest, packed):
            return None
        taker = self._taking(packed)
        if taker is not None and not self._worth_capturing(size, taker):
            return taker
        return size if self._captured(size, packed) else None

    def _worth_capturing(self, size: int, taker: int) -> bool:
        """Whether what was wasted on padding so far, for want of this size, would have paid for its graph.

        Capturing then costs at most twice what the best choice in hindsight would have (the ski-rental rule).
        """
        self._wasted[size] += taker - size
        few = len(self._graphs) < CAPTURED_AT_ONCE
        return taker > size and (few or self._wasted[size] > CAPTURE_COSTS * self._most_tokens)

    def _captured(self, tokens: int, packed: Packed) -> bool:
        """Make the graph of a size; its tensors must be gone before anything else is tried.

        Raises:
            RuntimeError: memory ran out, as anywhere else in a step.
        """
        self.captures += 1
        before = self._graphs.pop(tokens, None)
        shape = graph_shape(packed, tokens, before[0] if before else None)
        del before
        inputs = Inputs(shape, packed.input_ids.device)
        inputs.load(packed)
        self._gradients = self._gradients or Gradients(self._parameters)
        try:
            if not self._graphs and inputs.packed.input_ids.is_cuda:
                self._pool = Pool(tokens, self._decode, self._gradients, inputs.packed.input_ids.device)
            self._graphs[tokens] = (shape, inputs, self._capture(self._decode, inputs, self._gradients, self._pool))
        except RuntimeError as error:
            self.release()
            if is_out_of_memory(error):
                raise
            self._failed, self._gradients = True, None
            self._warn(failure(f"{tokens} tokens at once (CUDA graph)", error, "one launch after the other"))
            return False
        return True


class _Replayed(torch.autograd.Function):
    """A graph's forward, with its backward in autograd's place."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, graph: Graph, gradients: Gradients, tokens: int) -> Tensor:
        ctx.graph, ctx.gradients, ctx.tokens = graph, gradients, tokens
        graph.forward()
        return graph.hidden[:tokens]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, ...]:
        start = ctx.graph.grad_hidden
        start[: ctx.tokens].copy_(grad_outputs[0])
        start[ctx.tokens :].zero_()
        ctx.gradients.attach()
        ctx.graph.backward()
        return None, None, None, None
