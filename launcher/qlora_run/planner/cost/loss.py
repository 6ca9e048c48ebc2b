"""What the cross entropy takes at the end of a forward, by kernel.

Bytes a logit are counted from the kernels (core/qlora_core/kernels/cross_entropy.py); how they add up is held to steps
measured on an H200 (bench/memory.py ``--kernels``, tests/launcher/planner/cost/test_memory.py).
"""

from dataclasses import dataclass

from qlora_profiles.architectures import architecture_of
from qlora_profiles.facts import ModelFacts
from qlora_profiles.units import MIB
from qlora_run.planner.cost.activations import FLOAT32
from qlora_run.planner.cost.inputs import CostInputs

LARGEST_TILE_BYTES, TILE_SHARE = 320 * MIB, 0.027
"""Most memory for a tile of logits, and its share of a smaller budget: set by hand."""
LARGEST_OWN_TILE_BYTES, OWN_TILE_SHARE = 160 * MIB, 0.01
"""The same for our kernel, whose tile is a quarter as large: half as much for twice as many tokens. Set by hand."""
LARGEST_CHUNK, SMALLEST_CHUNK = 1024, 64
"""Supervised tokens of a tile: set by hand."""

OWN_LOGIT_BYTES = 2
"""Bytes for each logit of a tile that our kernel turns into slopes where it lies."""
LOGIT_BYTES, CAPPED_LOGIT_BYTES, TRAINED_LOGIT_BYTES = 8, 12, 12
"""Bytes for each logit of a tile: float32 values and their exponentials; with a cap, its slope; with a trained
head, which computes its tile again in backward, the logarithms and two gradients."""
WHOLE_LOGIT_BYTES = 14
"""The same where all logits exist at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCost:
    """Bytes of the loss: for each token, for each token of a tile of ``chunk_tokens``, and whatever its size."""

    token: int
    tile_token: int
    chunk_tokens: int
    fixed: int

    def tile_bytes(self, tokens: int) -> int:
        """The tile of logits while the loss of ``tokens`` supervised tokens is computed."""
        return self.tile_token * min(tokens, self.chunk_tokens)

    def bytes(self, tokens: int) -> int:
        """All of it while the loss of ``tokens`` supervised tokens is computed."""
        return self.token * tokens + self.tile_bytes(tokens) + self.fixed


def loss_cost(model: ModelFacts, inputs: CostInputs) -> LossCost:
    """The cost of the loss kernel that ``inputs`` name; a head that is trained always goes in chunks."""
    vocabulary = model.vocab_size
    token = _token(model, inputs)
    if inputs.loss_kernel == "logits" or model.own_logits:
        return LossCost(token=token + WHOLE_LOGIT_BYTES * vocabulary, tile_token=0, chunk_tokens=0, fixed=0)
    return LossCost(
        token=token,
        tile_token=_logit_bytes(model, inputs) * vocabulary,
        chunk_tokens=inputs.loss_chunk_tokens,
        fixed=_head_bytes(model, inputs) if inputs.full else 0,
    )


def _head_bytes(model: ModelFacts, inputs: CostInputs) -> int:
    """A trained head's copy in the arithmetic and its gradient; and the next tile's, where that outweighs the tile."""
    head = inputs.compute_bytes * model.vocab_size * model.hidden_size
    tile_then_gone = (TRAINED_LOGIT_BYTES - inputs.compute_bytes) * model.vocab_size * inputs.loss_chunk_tokens
    return 2 * head + max(0, head - tile_then_gone)


def _logit_bytes(model: ModelFacts, inputs: CostInputs) -> int:
    if inputs.full:
        return TRAINED_LOGIT_BYTES
    if inputs.loss_kernel == "triton":
        return inputs.compute_bytes
    return CAPPED_LOGIT_BYTES if architecture_of(model.model_type).caps_logits else LOGIT_BYTES


def _token(model: ModelFacts, inputs: CostInputs) -> int:
    """Outside the tile: what the last norm kept, its result, the supervised part and its gradient."""
    eager_16bit = inputs.compute_bytes < FLOAT32 and not inputs.fused_kernels
    kept = FLOAT32 if eager_16bit else inputs.compute_bytes
    around_graphs = 2 * inputs.stream_bytes if inputs.cuda_graphs else 0  # their result and where backward starts
    return (kept + 3 * inputs.stream_bytes + around_graphs) * model.hidden_size


def loss_chunk_tokens(vocab_size: int, budget_bytes: int | None, kernel: str = "chunked") -> int:
    """The largest power of two (64 to 1,024) of supervised tokens whose tile of logits stays small."""
    own = kernel == "triton"
    most, share = (LARGEST_OWN_TILE_BYTES, OWN_TILE_SHARE) if own else (LARGEST_TILE_BYTES, TILE_SHARE)
    room = most if budget_bytes is None else min(most, int(share * budget_bytes))
    chunk, logit_bytes = LARGEST_CHUNK, OWN_LOGIT_BYTES if own else LOGIT_BYTES
    while chunk > SMALLEST_CHUNK and chunk * vocab_size * logit_bytes > room:
        chunk //= 2
    return chunk
