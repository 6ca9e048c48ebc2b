"""The step itself: cut, compute, and do it again in smaller pieces when memory runs out.

Every micro-batch is divided by the supervised tokens of the *whole* step, so any cut gives the same
gradient. Out of memory drops the gradients of the step, makes the execution smaller and starts the same
step over: nothing is skipped, nothing is counted twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_core.session.ranks import SINGLE
from qlora_core.step.cutting import cut
from qlora_core.step.limits import Limits
from qlora_core.step.oom import free_cached_memory, is_out_of_memory
from qlora_core.step.packing import Example, Packed, pack_all, supervised_tokens
from qlora_profiles.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """``loss`` is nats per supervised token over the whole step (a device scalar until asked for).

    ``largest_tokens`` are those of the largest micro-batch.
    """

    loss: Tensor
    supervised_tokens: int
    tokens: int
    examples: int
    micro_batches: int
    largest_tokens: int
    lengths: tuple[int, ...]


class StepRunner:
    """Computes the gradient of one optimizer step into the parameters' ``grad``.

    Args:
        loss_sum: summed loss of a packed micro-batch.
        backward: accumulates gradients of a scalar (the trainer's, for loss scaling).
        drop_gradients: forgets the gradients of the step.
        limits: where the execution starts.
        num_layers: decoder layers that could recompute.
        can_rebuild: whether norms' and activations' results can be made again.
        on_change: told of each change as (cause, before, after); applies all of it but the token budget, which
            is the runner's own.
    """

    def __init__(
        self,
        *,
        loss_sum: Callable[[Packed], Tensor],
        backward: Callable[[Tensor], None],
        drop_gradients: Callable[[], None],
        limits: Limits,
        num_layers: int,
        device: torch.device,
        pin_memory: bool,
        on_change: Callable[[str, Limits, Limits], None],
        total_supervised: Callable[[int], int] = SINGLE.total,
        can_rebuild: bool = False,
    ) -> None:
        self.limits = limits
        self.loss_sum = loss_sum
        self._backward = backward
        self._drop_gradients = drop_gradients
        self._num_layers = num_layers
        self._can_rebuild = can_rebuild
        self._device = device
        self._pin_memory = pin_memory
        self._on_change = on_change
        self._total_supervised = total_supervised

    def run(self, examples: Sequence[Example]) -> StepResult:
        """The gradient of all ``examples`` together.

        Raises:
            EnvironmentProblem: not even the smallest execution fits.
        """
        while (result := self._attempt(examples)) is None:
            self._drop_gradients()
            self._shrink_or_give_up(examples)
            free_cached_memory(self._device)
        return result

    def _attempt(self, examples: Sequence[Example]) -> StepResult | None:
        """One pass over the step, or ``None`` when memory ran out on the way.

        The error must be gone before memory is freed: its traceback holds the activations.
        """
        try:
            return self._compute(examples)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _compute(self, examples: Sequence[Example]) -> StepResult:
        lengths = [len(example.input_ids) for example in examples]
        own = sum(supervised_tokens(example) for example in examples)
        share = 1.0 / max(1, self._total_supervised(own))
        batches = cut(lengths, self.limits.token_budget)
        total = torch.zeros((), device=self._device)
        for packed in pack_all([[examples[i] for i in batch] for batch in batches], self._device, self._pin_memory):
            if len(packed.targets) == 0:
                continue
            loss = self.loss_sum(packed) * share
            self._backward(loss)
            total += loss.detach()
        return StepResult(
            loss=total,
            supervised_tokens=own,
            tokens=sum(lengths),
            examples=len(examples),
            micro_batches=len(batches),
            largest_tokens=max(sum(lengths[i] for i in batch) for batch in batches),
            lengths=tuple(lengths),
        )

    def change(self, cause: str, after: Limits) -> None:
        """Compute from now on within ``after``."""
        before, self.limits = self.limits, after
        self._on_change(cause, before, after)

    def shrink(self, cause: str, lengths: Sequence[int]) -> bool:
        """Take the next smaller execution that would cut a step of these lengths otherwise; False at the end."""
        after = self.limits.smaller(lengths, self._num_layers, self._can_rebuild)
        if after is not None:
            self.change(cause, after)
        return after is not None

    def _shrink_or_give_up(self, examples: Sequence[Example]) -> None:
        lengths = [len(example.input_ids) for example in examples]
        if not self.shrink("out of memory", lengths):
            raise EnvironmentProblem(
                f"out of memory on an example of {max(lengths)} tokens, with every saving in use",
                f"--max-length {max(64, max(lengths) // 2)}",
            )
