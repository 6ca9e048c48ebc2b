"""The part of the execution that may change while running, and the ladder down it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

from qlora_core.step.cutting import cut
from qlora_profiles.settings import Execution

SMALLEST_TOKEN_BUDGET = 64
"""Below this a smaller budget saves next to nothing: what is left is the weights and the layers."""

SMALLEST_LOSS_CHUNK = 32

EXPANDED_FEWER = 4
"""Into so many parts the number of expanded layers falls at once: each try costs a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the memory of a step. Nothing in it changes what is learned."""

    token_budget: int
    layers_recomputed: int
    loss_chunk_tokens: int = 1024
    offload_activations: bool = False
    cuda_graphs: bool = False
    rebuild_activations: bool = False
    layers_expanded: int = 0

    @classmethod
    def of(cls, execution: Execution) -> "Limits":
        """Where a plan starts."""
        return cls(**{f.name: getattr(execution, f.name) for f in fields(cls)})

    def smaller(self, lengths: Sequence[int], num_layers: int, can_rebuild: bool = False) -> "Limits | None":
        """The next rung down for a step of these lengths (tokens), or ``None`` at the bottom.

        Expanded weights first, which are soon made; results that are, where the kernels can; what graphs hold for good;
        then smaller micro-batches, then more recomputing layers, smaller tiles of logits, and activations in main
        memory.
        """
        if can_rebuild and not self.rebuild_activations and not self.layers_expanded:
            return replace(self, rebuild_activations=True)
        return self.less_held() or next(chain(self._cut_smaller(lengths), self._other_rungs(num_layers)), None)

    def less_held(self) -> "Limits | None":
        """With less that stays from step to step: expanded weights, then what graphs hold; ``None`` without either."""
        if self.layers_expanded:
            return replace(self, layers_expanded=self.layers_expanded // EXPANDED_FEWER)
        return replace(self, cuda_graphs=False) if self.cuda_graphs else None

    def _cut_smaller(self, lengths: Sequence[int]) -> Iterator["Limits"]:
        """Halved budgets, as soon as one cuts these lengths otherwise than now."""
        now = cut(lengths, self.token_budget)
        largest = max(sum(lengths[i] for i in batch) for batch in now)
        budget = min(self.token_budget, largest)
        while budget > SMALLEST_TOKEN_BUDGET:
            budget = max(SMALLEST_TOKEN_BUDGET, budget // 2)
            if cut(lengths, budget) != now:
                yield replace(self, token_budget=budget)

    def _other_rungs(self, num_layers: int) -> Iterator["Limits"]:
        if self.layers_recomputed < num_layers:
            more = max(self.layers_recomputed + 1, (self.layers_recomputed + num_layers + 1) // 2)
            yield replace(self, layers_recomputed=more)
        if self.loss_chunk_tokens > SMALLEST_LOSS_CHUNK:
            yield replace(self, loss_chunk_tokens=self.loss_chunk_tokens // 2)
        if not self.offload_activations and num_layers > 0:
            yield replace(self, offload_activations=True)

    def larger(self, start: "Limits") -> "Limits | None":
        """One rung back towards where the plan started, or ``None`` when it is there."""
        if self.offload_activations and not start.offload_activations:
            return replace(self, offload_activations=False)
        if self.loss_chunk_tokens < start.loss_chunk_tokens:
            return replace(self, loss_chunk_tokens=min(start.loss_chunk_tokens, self.loss_chunk_tokens * 2))
        if self.layers_recomputed > start.layers_recomputed:
            return replace(self, layers_recomputed=(self.layers_recomputed + start.layers_recomputed) // 2)
        if self.token_budget < start.token_budget:
            return replace(self, token_budget=min(start.token_budget, self.token_budget * 2))
        if start.cuda_graphs and not self.cuda_graphs:
            return replace(self, cuda_graphs=True)
        if self.rebuild_activations and not start.rebuild_activations:
            return replace(self, rebuild_activations=False)
        if self.layers_expanded < start.layers_expanded:
            return replace(self, layers_expanded=(self.layers_expanded + start.layers_expanded + 1) // 2)
        return None
