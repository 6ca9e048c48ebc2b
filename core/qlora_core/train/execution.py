"""What runs now, and the one that changes it: memory that runs out, pressure, quiet times and a measurement's answer
all come here.

The plan says where a run starts. From there on this is the truth: every change is made by ``_take``, which applies it
and writes it down, so that the events tell at any moment what runs.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any, TypeVar

import torch
from torch import Tensor

from qlora_core.backends.protocol import LossFunction
from qlora_core.execution.limits import Limits
from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.memory.oom_retry import (
    OPTIMIZER_WAYS,
    beside_a_step,
    drop_workspaces,
    retry_after_freeing,
    retry_on_oom,
    retry_optimizer_step,
)
from qlora_core.memory.pressure_monitor import PressureMonitor
from qlora_core.model.packing import Example
from qlora_core.session.ranks import SINGLE
from qlora_core.train.evaluate import HeldOut, evaluate
from qlora_core.train.step import StepResult, StepRunner
from qlora_core.train.step_stats import StepStats
from qlora_profiles import events
from qlora_profiles.errors import EnvironmentProblem

T = TypeVar("T")

EVALUATION_BUDGET = "evaluation_token_budget"
"""What events call it: no setting, for it starts as the step's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """How steps and held-out rows are computed.

    ``evaluation_token_budget`` (tokens of a micro-batch) is set once held-out rows found no room in those of a step.
    """

    limits: Limits
    evaluation_token_budget: int | None = None

    def values(self) -> dict[str, Any]:
        """All of it by name, as events say it."""
        own = self.evaluation_token_budget
        return asdict(self.limits) | ({} if own is None else {EVALUATION_BUDGET: own})


class RunningExecution:
    """Computes steps and held-out rows within limits that it makes smaller and larger as memory demands.

    Args:
        limits: where it starts.
        apply: lets the model compute within limits (all but the token budget), and hands out the loss of a micro-batch
            computed so.
        num_layers: decoder layers that could recompute.
        usable: names of the rungs that the model's kernels can do (``rungs.usable_rungs``).
        backward: accumulates gradients of a scalar (the trainer's, for loss scaling).
        drop_gradients: forgets the gradients of the step.
        memory: of the device that computes.
        write: appends an event (``EventLog.write``).
        step_in_hand: number of the step that is computed, or comes next.
        total_supervised: from this process's supervised tokens of a step to those of all.

    Attributes:
        loss_function: computes the loss of micro-batches now.
        largest: what it may grow back to.
        stats: what the steps that count were like.
    """

    def __init__(
        self,
        *,
        limits: Limits,
        apply: Callable[[Limits], LossFunction],
        num_layers: int,
        usable: Collection[str],
        backward: Callable[[Tensor], None],
        drop_gradients: Callable[[], None],
        memory: DeviceMemory,
        write: Callable[..., None],
        step_in_hand: Callable[[], int],
        pin_memory: bool = False,
        total_supervised: Callable[[int], int] = SINGLE.total,
    ) -> None:
        self._in_force = InForce(limits=limits)
        self.largest = limits
        self._apply = apply
        self.loss_function = apply(limits)
        self._num_layers, self._usable = num_layers, usable
        self._drop_gradients = drop_gradients
        self._memory, self._device, self._pin_memory = memory, memory.device, pin_memory
        self._write, self._step_in_hand = write, step_in_hand
        self._captures = 0
        self._runner = StepRunner(
            backward=backward, device=self._device, pin_memory=pin_memory, total_supervised=total_supervised
        )
        self.begin()

    def begin(self) -> None:
        """Steps count from here on: what was tried before says nothing of them."""
        self.stats, self._pressure = StepStats(), PressureMonitor()

    @property
    def limits(self) -> Limits:
        """Within what steps are computed now."""
        return self._in_force.limits

    @property
    def evaluation_token_budget(self) -> int:
        """Tokens that a micro-batch of held-out rows may have now."""
        return min(self.limits.token_budget, self._in_force.evaluation_token_budget or self.limits.token_budget)

    def values(self) -> dict[str, Any]:
        """What runs now, by name."""
        return self._in_force.values()

    def captured(self) -> bool:
        """Whether graphs were captured since the last call: such a step's time says nothing of the others."""
        before, self._captures = self._captures, getattr(self.loss_function, "captures", 0)
        return self._captures != before

    def measured(self) -> dict[str, Any] | None:
        """The fields of a ``MeasuredEvent`` about the steps that count; ``None`` where they were not all computed in
        one way, or none was timed, or the device's memory cannot be measured."""
        reserved = self._memory.reserved_peak_bytes()
        if reserved is None or self.stats.adapted or not self.stats.step_seconds:
            return None
        return {
            "limits": asdict(self.limits),
            "largest_tokens": self.stats.largest_tokens,
            "several_micro_batches": self.stats.several_micro_batches,
            "reserved_bytes": reserved,
            "outside_bytes": self._memory.outside_now_bytes(),
            "step_tokens": mean(self.stats.step_tokens),
            "step_seconds": mean(self.stats.step_seconds),
        }

    def run(self, examples: Sequence[Example]) -> StepResult:
        """The gradient of all ``examples`` together, in the parameters' ``grad``.

        Out of memory drops the gradients of the step, makes the execution smaller and starts the same step over:
        nothing is skipped, nothing is counted twice.

        Raises:
            EnvironmentProblem: not even the smallest execution fits.
        """
        lengths = [len(example.input_ids) for example in examples]

        def free_memory() -> bool:
            self._drop_gradients()
            return self.shrink("out of memory", lengths)

        return retry_on_oom(
            lambda: self._runner.run(examples, self.loss_function, self.limits.token_budget, self._step_in_hand()),
            self._device,
            free_memory,
            lambda why: EnvironmentProblem(
                f"out of memory on an example of {max(lengths)} tokens, with every saving in use",
                f"--max-length {max(64, max(lengths) // 2)}",
            ),
        )

    def evaluate(self, examples: Sequence[Example]) -> HeldOut:
        """The loss of held-out rows (nats per supervised token). Where they find no room, their micro-batches become
        smaller for good, down to single rows; then what is held for the steps goes, which is made again after.

        Raises:
            EnvironmentProblem: a single row does not fit.
        """
        lengths = [len(example.input_ids) for example in examples]
        return retry_on_oom(
            lambda: evaluate(
                self.loss_function, examples, self.evaluation_token_budget, self._device, self._pin_memory
            ),
            self._device,
            lambda: self._cut_evaluation(lengths) or self._free_held(),
            beside_a_step("--val-size 0"),
        )

    def run_beside_steps(self, work: Callable[[], T], ways: str) -> T:
        """Do something beside the steps. CUDA graphs, then dequantized weights make room for it where they must, and
        are made again after.

        Raises:
            EnvironmentProblem: memory runs out all the same; ``ways`` are what helps.
        """
        return retry_after_freeing(work, self._device, self._free_held, ways)

    def for_optimizer(self, work: Callable[[], T]) -> T:
        """Do what the optimizer's step needs each time: what makes room for it stays away.

        Raises:
            EnvironmentProblem: memory runs out all the same.
        """
        return retry_after_freeing(work, self._device, self._give_up_held, OPTIMIZER_WAYS)

    def retry_optimizer_step(self, optimizer: torch.optim.AdamW) -> None:
        """Let the optimizer's step that finds no room for its state try again."""
        retry_optimizer_step(optimizer, self._device, self._give_up_held)

    def after_step(self, result: StepResult, seconds: float | None) -> None:
        """Count a step that is over (without ``seconds`` where its time was unusual), and draw the consequences:
        shrink before memory spills silently, grow back when a smaller execution was too careful.
        """
        self.stats.add(result, seconds)
        cause = self._pressure.after_step(result.tokens, seconds, *self._memory.pressure())
        if (cause is None or not self.shrink(cause, result.lengths)) and self._pressure.may_grow():
            self._grow()

    def shrink(self, cause: str, lengths: Sequence[int]) -> bool:
        """Take the next smaller execution that would compute a step of these lengths (tokens) otherwise; False at the
        end."""
        after = self.limits.smaller(lengths, self._num_layers, self._usable)
        if after is not None:
            self.change(cause, after)
        return after is not None

    def start_from(self, cause: str, limits: Limits) -> None:
        """Compute within ``limits`` from here on, be they others or not, and never grow beyond them."""
        if limits != self.limits:
            self.change(cause, limits)
        self.largest = limits

    def change(self, cause: str, after: Limits) -> None:
        """Compute from here on within ``after``."""
        self._take(cause, replace(self._in_force, limits=after))
        self._pressure.shrunk()

    def _grow(self) -> None:
        after = self.limits.larger(self.largest)
        if after is not None:
            self._take("it had been quiet for a while", replace(self._in_force, limits=after))
        self._pressure.grown()

    def _cut_evaluation(self, lengths: Sequence[int]) -> bool:
        """Held-out rows of these lengths (tokens) in smaller micro-batches; False where none is larger than the longest
        row. The next evaluation begins there, instead of running out of memory again."""
        largest = max(
            sum(lengths[i] for i in batch) for batch in make_micro_batches(lengths, self.evaluation_token_budget)
        )
        if largest <= max(lengths):
            return False
        budget = max(max(lengths), largest // 2)
        self._take("no room to measure the held-out rows", replace(self._in_force, evaluation_token_budget=budget))
        return True

    def _free_held(self) -> bool:
        """Free what is soon made again, or else the workspaces of products; False where there are none."""
        release = getattr(self.loss_function, "release", None)
        return bool(release and release()) or drop_workspaces()

    def _give_up_held(self) -> bool:
        """Do without dequantized weights or CUDA graphs from here on, or else free the workspaces of products; False
        where there are none."""
        after = self.limits.less_held()
        if after is None:
            return drop_workspaces()
        self.change("out of memory for the optimizer's step", after)
        return True

    def _take(self, cause: str, after: InForce) -> None:
        """Every change of what runs: apply it, and write down what it changed."""
        before, self._in_force = self._in_force, after
        if after.limits != before.limits:
            self.loss_function = self._apply(after.limits)
            self.stats.adapted = True
        was = {EVALUATION_BUDGET: before.limits.token_budget} | before.values()
        changed = {name: value for name, value in after.values().items() if was[name] != value}
        self._write(
            events.AdaptationEvent,
            step=self._step_in_hand(),
            cause=cause,
            before={name: was[name] for name in changed},
            after=changed,
        )
