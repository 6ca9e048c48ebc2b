"""The part of the execution that may change while running, and the ladder down it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from qlora_core.execution.rungs import HELD, RUNGS, Rung, TightStep
from qlora_profiles.settings import Execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the memory of a step. Nothing in it changes what is learned."""

    token_budget: int
    layers_recomputed: int
    loss_chunk_tokens: int = 1024
    offload_activations: bool = False
    cuda_graphs: bool = False
    rematerialize_activations: bool = False
    layers_dequantized: int = 0

    @classmethod
    def of(cls, execution: Execution) -> "Limits":
        """Where a plan starts."""
        return cls(**{f.name: getattr(execution, f.name) for f in fields(cls)})

    def smaller(self, lengths: Sequence[int], num_layers: int, usable: Collection[str]) -> "Limits | None":
        """The next rung down for a step, or ``None`` at the bottom.

        Args:
            lengths: tokens of each of the step's examples.
            num_layers: decoder layers of the model.
            usable: names of the rungs that its kernels can do (``rungs.usable_rungs``).
        """
        step = TightStep(lengths=lengths, num_layers=num_layers)
        rungs = (rung for rung in RUNGS if rung.name in usable)
        return self._first(rungs, lambda rung, value: rung.smaller(value, step))

    def less_held(self) -> "Limits | None":
        """With less that stays from step to step, or ``None`` where nothing does."""
        return self._first(HELD, lambda rung, value: rung.smaller(value, TightStep()))

    def larger(self, start: "Limits") -> "Limits | None":
        """One rung back towards where the plan started, or ``None`` when it is there."""
        return self._first(reversed(RUNGS), lambda rung, value: rung.larger(value, getattr(start, rung.name)))

    def _first(self, rungs: Iterable[Rung], move: Callable[[Rung, int], int | None]) -> "Limits | None":
        """The first of the rungs that moves, moved."""
        for rung in rungs:
            if (after := move(rung, getattr(self, rung.name))) is not None:
                changed: dict[str, Any] = {rung.name: after}
                return replace(self, **changed)
        return None
