"""What the planner thinks that each rung saves, over whole ladders."""

from itertools import pairwise

import pytest
from msgspec import structs
from support.planning_facts import asking, card_report, data_of, known

from qlora_core.execution.limits import Limits
from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.execution.rungs import RUNGS
from qlora_profiles.settings import Execution
from qlora_run.machine.run_key import limits_of
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner import resolve
from qlora_run.planner.cost.estimate import estimate_memory
from qlora_run.planner.cost.rungs import RUNG_COSTS

MODEL = known("Qwen/Qwen3-8B")
LIGER = {"bitsandbytes": "0.50.2", "liger-kernel": "0.8.5", "triton": "3.7.0"}
PLAN = resolve(card_report(80, packages=LIGER), asking(method="qlora-4"), MODEL, data_of())
NAMES = [rung.name for rung in RUNGS]


def peak_bytes(execution: Execution, lengths: list[int]) -> int:
    largest = max(sum(lengths[i] for i in batch) for batch in make_micro_batches(lengths, execution.token_budget))
    targets = discover_targets(MODEL, ("all-linear",))
    return estimate_memory(MODEL, targets, PLAN.recipe_values(), execution, largest, report=PLAN.report).peak_bytes


def start(**changes: object) -> Execution:
    usual = {"token_budget": 16384, "layers_recomputed": 0, "loss_chunk_tokens": 1024, "cuda_graphs": False}
    return structs.replace(PLAN.execution_values(), **usual | {"layers_dequantized": 0} | changes)


@pytest.mark.parametrize("changes", [{}, {"layers_dequantized": 36}, {"cuda_graphs": True}, {"layers_recomputed": 36}])
def test_no_rung_takes_more_memory(changes: dict[str, object]) -> None:
    execution, lengths = start(**changes), [2048, 1500, 1100, 900, 600, 300, 200, 100]
    peaks, limits = [peak_bytes(execution, lengths)], Limits.of(execution)
    while (below := limits.smaller(lengths, 36, NAMES)) is not None:
        limits = below
        execution = structs.replace(execution, **{name: getattr(limits, name) for name in NAMES})
        peaks.append(peak_bytes(execution, lengths))
    assert all(below <= above for above, below in pairwise(peaks))
    assert peaks[-1] < peaks[0]


def test_costs_of_their_own_are_of_rungs() -> None:
    assert set(RUNG_COSTS) <= set(NAMES)
    assert set(limits_of(start(), RUNG_COSTS)) == set(RUNG_COSTS)
