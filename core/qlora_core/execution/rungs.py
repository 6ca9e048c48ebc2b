"""Every setting of the execution that may change in mid-run, once: how it makes room, grows back and is planned.

The ladder (``execution.limits``), the planner's search and its reasons, and the reference of the settings are all made
from ``RUNGS``. What a setting costs in bytes and seconds is beside the rest of the planner's costs
(``qlora_run.planner.cost.rungs``); an entry here says it in words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from qlora_core.execution.micro_batches import make_micro_batches
from qlora_profiles.settings import Execution

SMALLEST_TOKEN_BUDGET = 64
"""Below this a smaller budget saves next to nothing: what is left is the weights and the layers."""

SMALLEST_LOSS_CHUNK = 32
"""Supervised tokens; set by hand."""

DEQUANTIZED_PARTS = 4
"""Into so many parts the number of dequantized layers falls at once: each try costs a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TightStep:
    """The step that there is no room for: its examples' lengths (tokens) and the model's decoder layers."""

    lengths: Sequence[int] = ()
    num_layers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """How the planner finds a value and says why.

    A *size* is worked out from the room there is, a *filler* takes as many layers as fit into room that is left, a
    *switch* is tried both ways.

    Attributes:
        smallest: the value that takes the least memory; of a size, that depends on the data.
        needs: what the kernels must be (attributes of the planner's ``CostInputs``), with words for each.
        usual: why it is left as it is by default; what the setting is, where nothing is said.
        why: why it is something else, where the planner finds that better.
        why_off: why a switch is off, where it is left off after a look at both; else ``usual`` says it.
        labels: what a person reads of a switch that is on and off, or after the number of a filler.
        idle_with_room: a switch that changes nothing for the better where no layer must recompute.
    """

    kind: Literal["size", "filler", "switch"]
    smallest: int = 0
    needs: Mapping[str, str] = field(default_factory=dict)
    usual: str = ""
    why: str = ""
    why_off: str = ""
    labels: tuple[str, str] = ("", "")
    idle_with_room: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One setting. Its values are whole numbers, or true and false.

    Attributes:
        smaller: the next value that takes less memory for a step, or ``None`` where there is none.
        larger: from a value, the next one back towards a start; ``None`` where it is there.
        down: what ``smaller`` does, in words.
        costs: what that does to memory and time, in words.
        held: whether its memory stays from step to step.
        usable: whether the kernels of an execution can do what makes it smaller.
        planned: how the planner searches it; ``None`` where a rule decides alone.
    """

    name: str
    smaller: Callable[[int, TightStep], int | None]
    larger: Callable[[int, int], int | None]
    down: str
    costs: str
    held: bool = False
    usable: Callable[[Execution], bool] = lambda execution: True
    planned: Planned | None = None


def _fewer_dequantized(layers: int, step: TightStep) -> int | None:
    return layers // DEQUANTIZED_PARTS if layers else None


def _more_dequantized(layers: int, start: int) -> int | None:
    return (layers + start + 1) // 2 if layers < start else None


def _rematerialized(on: int, step: TightStep) -> int | None:
    return True if not on else None


def _can_rematerialize(execution: Execution) -> bool:
    """Fused adapters and Liger's layers tell each other what a result was made of."""
    return execution.adapter_kernel == "fused" and execution.layer_kernels == "liger"


def _finer_cut(token_budget: int, step: TightStep) -> int | None:
    """The largest of the halved budgets that cuts the step otherwise than now."""
    now = make_micro_batches(step.lengths, token_budget)
    budget = min(token_budget, max(sum(step.lengths[i] for i in batch) for batch in now))
    while budget > SMALLEST_TOKEN_BUDGET:
        budget = max(SMALLEST_TOKEN_BUDGET, budget // 2)
        if make_micro_batches(step.lengths, budget) != now:
            return budget
    return None


def _more_recomputed(layers: int, step: TightStep) -> int | None:
    return max(layers + 1, (layers + step.num_layers + 1) // 2) if layers < step.num_layers else None


def _fewer_recomputed(layers: int, start: int) -> int | None:
    return (layers + start) // 2 if layers > start else None


def _halved_chunk(tokens: int, step: TightStep) -> int | None:
    return tokens // 2 if tokens > SMALLEST_LOSS_CHUNK else None


def _offloaded(on: int, step: TightStep) -> int | None:
    return True if step.num_layers > 0 and not on else None


def _off(on: int, step: TightStep | None = None) -> int | None:
    return False if on else None


def _doubled(value: int, start: int) -> int | None:
    return min(start, value * 2) if value < start else None


def _on_again(on: int, start: int) -> int | None:
    return True if start and not on else None


def _off_again(on: int, start: int) -> int | None:
    return False if on and not start else None


RUNGS = (
    Rung(
        name="layers_dequantized",
        smaller=_fewer_dequantized,
        larger=_more_dequantized,
        down="a quarter as many, at last none",
        costs="frees their weights in 16 bits, which each product then dequantizes again",
        held=True,
        planned=Planned(
            kind="filler",
            needs={"four_bit": "a 4-bit base", "fused_adapters": "fused adapters"},
            usual="dequantized when a product needs them",
            why="there is room: not dequantized for each product",
            labels=("dequantized", ""),
        ),
    ),
    Rung(
        name="rematerialize_activations",
        smaller=_rematerialized,
        larger=_off_again,
        down="on, where the kernels can",
        costs="keeps less of each layer, which backward makes again",
        usable=_can_rematerialize,
        planned=Planned(
            kind="switch",
            smallest=True,
            needs={"fused_adapters": "fused adapters", "fused_kernels": "Liger's layers"},
            usual="keeping them is faster",
            why="soon made; room is worth more",
            labels=("activations rematerialized", "nothing rematerialized"),
            idle_with_room=True,
        ),
    ),
    Rung(
        name="cuda_graphs",
        smaller=_off,
        larger=_on_again,
        down="off",
        costs="frees what graphs hold; the host launches every kernel again",
        held=True,
        planned=Planned(
            kind="switch",
            why="launching kernels takes longest here",
            why_off="not faster here, or no room for what they hold",
            labels=("CUDA graphs", "no CUDA graphs"),
        ),
    ),
    Rung(
        name="token_budget",
        smaller=_finer_cut,
        larger=_doubled,
        down=f"halved until the step is cut otherwise, at last {SMALLEST_TOKEN_BUDGET}",
        costs="smaller micro-batches, and more of them",
        planned=Planned(kind="size"),
    ),
    Rung(
        name="layers_recomputed",
        smaller=_more_recomputed,
        larger=_fewer_recomputed,
        down="half of the others too, at last all",
        costs="their activations are not kept, and computed again in backward",
        planned=Planned(kind="size"),
    ),
    Rung(
        name="loss_chunk_tokens",
        smaller=_halved_chunk,
        larger=_doubled,
        down=f"halved, at last {SMALLEST_LOSS_CHUNK}",
        costs="smaller tiles of logits, and more of them",
    ),
    Rung(
        name="offload_activations",
        smaller=_offloaded,
        larger=_off_again,
        down="on",
        costs="recomputing layers keep nothing on the card; copies to main memory and back",
        planned=Planned(
            kind="switch",
            smallest=True,
            why="the card has no room for them",
            labels=("activations offloaded", "nothing offloaded"),
        ),
    ),
)
"""In the order in which memory is given up: what is held and soon made first, what costs most time last. Growing back
takes the opposite order."""

NAMES = frozenset(rung.name for rung in RUNGS)

HELD = tuple(rung for rung in RUNGS if rung.held)

_PLANS = {rung.name: rung.planned for rung in RUNGS if rung.planned}
SWITCHES = {name: plan for name, plan in reversed(_PLANS.items()) if plan.kind == "switch"}
"""What sets the variants of an execution apart, from what makes them least simple on."""
FILLERS = {name: plan for name, plan in _PLANS.items() if plan.kind == "filler"}
SIZES = (*(name for name, plan in _PLANS.items() if plan.kind == "size"), *FILLERS)
"""What decides how much memory an execution takes with the same switches."""
SEARCHED = (*SIZES, *SWITCHES)
"""What is searched of an execution, and can still change once the model is loaded."""


def planned(name: str) -> Planned:
    """How a setting is searched.

    Raises:
        KeyError: it is not.
    """
    return _PLANS[name]


def usable_rungs(execution: Execution) -> frozenset[str]:
    """Names of the rungs that the kernels of an execution can do."""
    return frozenset(rung.name for rung in RUNGS if rung.usable(execution))
