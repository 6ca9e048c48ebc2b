"""The decoder's forward and backward as CUDA graphs: one launch each instead of thousands.

A graph computes one shape only, so micro-batches are padded to a few of them: a tail of sequences of their own that
nothing is scored on and no other sequence sees, hence of zero gradient. The loss stays outside, on real tokens.

Shape legend: T tokens of a micro-batch, H hidden size; a bucket has at least as many of everything.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from qlora_core.step.packing import Packed

SMALLEST_TOKENS, LARGEST_TOKENS = 256, 8192
"""Beyond the largest the card is busy computing anyway."""
FEWEST_SEQUENCES, MOST_SEQUENCES = 8, 128
SHORTEST_LONGEST = 256
MOST_GRAPHS = 6
"""Each graph holds its launches in memory; activations they share."""
USES_BEFORE = 1
"""How often a shape must have come before it is worth a graph; the first time also warms its kernels up."""

Decode = Callable[[Packed], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A shape: tokens, sequences (the tail's among them), and the longest that one of them may be."""

    tokens: int
    sequences: int
    longest: int


def bucket_of(packed: Packed, most_tokens: int) -> Bucket | None:
    """The smallest shape that takes a micro-batch, of at most ``most_tokens`` tokens; ``None`` where there is none."""
    tokens = packed.num_tokens
    if tokens > min(most_tokens, LARGEST_TOKENS):
        return None
    padded = min(_rounded(max(tokens, SMALLEST_TOKENS)), max(most_tokens, tokens))
    longest = min(padded, _power_of_two(max(packed.longest, SHORTEST_LONGEST)))
    tail = -(-(padded - tokens) // longest)
    sequences = _power_of_two(max(FEWEST_SEQUENCES, len(packed.boundaries) - 1 + tail))
    return Bucket(tokens=padded, sequences=sequences, longest=longest) if sequences <= MOST_SEQUENCES else None


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _rounded(tokens: int) -> int:
    """Up to a power of two or one and a half of it."""
    above = _power_of_two(tokens)
    return above * 3 // 4 if tokens <= above * 3 // 4 else above


class Inputs:
    """The tensors that a graph reads, always at the same place. ``packed`` is the padded micro-batch in them."""

    def __init__(self, bucket: Bucket, device: torch.device) -> None:
        zeros = torch.zeros(1, bucket.tokens, dtype=torch.long, device=device)
        self._bucket = bucket
        self._steps = torch.arange(1, bucket.sequences + 1, dtype=torch.int32, device=device) * bucket.longest
        self._ramp = torch.arange(bucket.tokens, device=device) % bucket.longest
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        self.packed = Packed(
            input_ids=zeros,
            position_ids=zeros.clone(),
            boundaries=torch.zeros(bucket.sequences + 1, dtype=torch.int32, device=device),
            longest=bucket.longest,
            scored_at=nothing,
            targets=nothing,
        )

    def load(self, packed: Packed) -> None:
        """Put a micro-batch in; which ids the tail has does not matter."""
        here, tokens, ends = self.packed, packed.num_tokens, len(packed.boundaries)
        here.input_ids[:, :tokens].copy_(packed.input_ids)
        here.position_ids[:, :tokens].copy_(packed.position_ids)
        here.position_ids[0, tokens:].copy_(self._ramp[: self._bucket.tokens - tokens])
        here.boundaries[:ends].copy_(packed.boundaries)
        tail = self._steps[: len(here.boundaries) - ends] + tokens
        here.boundaries[ends:].copy_(tail.clamp_max_(self._bucket.tokens))


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


Capture = Callable[[Decode, Inputs, Gradients, Any], Graph]


class CudaGraph:
    """A forward and a backward captured on the card, in a pool of memory that all graphs share.

    Sharing is safe because a backward always follows its own forward, with no other graph between them.
    """

    def __init__(self, decode: Decode, inputs: Inputs, gradients: Gradients, pool: Any) -> None:
        self._warm_up(decode, inputs, gradients)
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=pool, capture_error_mode="thread_local"):
            hidden = decode(inputs.packed)
        self.grad_hidden = torch.zeros_like(hidden)
        with torch.cuda.graph(self._backward, pool=pool, capture_error_mode="thread_local"):
            gradients.add(_gradients(hidden, gradients, self.grad_hidden))
        self.hidden = hidden.detach()

    @staticmethod
    def _warm_up(decode: Decode, inputs: Inputs, gradients: Gradients) -> None:
        """Once on a stream of its own, so that nothing is compiled or allocated for good while capturing."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            hidden = decode(inputs.packed)
            _gradients(hidden, gradients, torch.zeros_like(hidden))
            del hidden
        torch.cuda.current_stream().wait_stream(stream)

    def forward(self) -> None:
        """Compute ``hidden`` from the inputs."""
        self._forward.replay()

    def backward(self) -> None:
        """Add the gradients to their buffers."""
        self._backward.replay()


def _gradients(hidden: Tensor, gradients: Gradients, grad_hidden: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(hidden, gradients.parameters, grad_hidden, allow_unused=True)


class GraphedDecoder:
    """Hidden states of a micro-batch by a graph of its shape, or ``None`` where it is to be computed as usual.

    Args:
        decode: hidden states of a micro-batch as usual.
        parameters: what is trained.
        most_tokens: no shape is larger than a micro-batch may be.
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
        self._graphs: dict[Bucket, tuple[Inputs, Graph]] = {}
        self._uses: Counter[Bucket] = Counter()
        self._failed = False
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        self._anchor = torch.zeros((), requires_grad=True)

    @property
    def num_graphs(self) -> int:
        """Shapes that have one."""
        return len(self._graphs)

    def __call__(self, packed: Packed) -> Tensor | None:
        """T x H, differentiable: its backward fills the parameters' gradients."""
        bucket = bucket_of(packed, self._most_tokens) if torch.is_grad_enabled() else None
        if bucket is None or not self._ready(bucket, packed):
            return None
        inputs, graph = self._graphs[bucket]
        inputs.load(packed)
        hidden: Tensor = _Replayed.apply(self._anchor, graph, self._gradients, packed.num_tokens)  # type: ignore[no-untyped-call]
        return hidden

    def _ready(self, bucket: Bucket, packed: Packed) -> bool:
        """Whether there is a graph of a shape by now."""
        if bucket in self._graphs:
            return True
        self._uses[bucket] += 1
        if self._failed or self._uses[bucket] <= USES_BEFORE or len(self._graphs) >= MOST_GRAPHS:
            return False
        self._failed = not self._captured(bucket, packed)
        if self._failed:
            self._graphs.clear()
            self._gradients = None
        return not self._failed

    def _captured(self, bucket: Bucket, packed: Packed) -> bool:
        """Make the graph of a shape; its tensors must be gone before anything else is tried."""
        self._gradients = self._gradients or Gradients(self._parameters)
        inputs = Inputs(bucket, packed.input_ids.device)
        inputs.load(packed)
        try:
            self._graphs[bucket] = (inputs, self._capture(self._decode, inputs, self._gradients, self._pool))
        except RuntimeError as error:
            why = str(error).strip().splitlines() or [type(error).__name__]
            self._warn(f"CUDA graphs: capturing {bucket.tokens} tokens failed ({why[0][:120]}); going on without")
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
