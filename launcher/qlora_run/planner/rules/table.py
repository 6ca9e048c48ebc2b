"""The table of tuned settings: who decides each, and who says that a person's own value cannot work."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from qlora_profiles.errors import QloraRunError
from qlora_profiles.plan import Resolved
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.rules import kernels, machine, recipe, run, rungs


def _no_problem(s: PlanningContext, value: Any) -> QloraRunError | None:
    return None


class Rule(NamedTuple):
    """How one setting is decided, and what is wrong with a value that somebody gave."""

    name: str
    decide: Callable[[PlanningContext], Resolved]
    problem: Callable[[PlanningContext, Any], QloraRunError | None] = _no_problem


RULES = (
    Rule("device", machine.device, machine.device_problem),
    Rule("devices", machine.devices, machine.devices_problem),
    Rule("backend", machine.backend, machine.backend_problem),
    Rule("compute_dtype", machine.compute_dtype, machine.compute_dtype_problem),
    Rule("vram_budget_bytes", machine.vram_budget_bytes, machine.vram_budget_problem),
    Rule("attention", kernels.attention, kernels.attention_problem),
    Rule("loss_kernel", kernels.loss_kernel, kernels.loss_kernel_problem),
    Rule("loss_chunk_tokens", kernels.loss_chunk_tokens),
    Rule("optimizer_kernel", kernels.optimizer_kernel),
    Rule("adapter_kernel", kernels.adapter_kernel),
    Rule("dequantize_kernel", kernels.dequantize_kernel, kernels.dequantize_kernel_problem),
    Rule("layer_kernels", kernels.layer_kernels, kernels.layer_kernels_problem),
    *(Rule(name, partial(rungs.usual, name), partial(rungs.problem, name)) for name in rungs.WITH_NEEDS),
    Rule("cuda_graphs", kernels.cuda_graphs, kernels.cuda_graphs_problem),
    Rule("workers", machine.workers),
    Rule("dataset_workers", machine.dataset_workers),
    Rule("pin_memory", machine.pin_memory),
    Rule("expandable_segments", machine.expandable_segments, machine.expandable_problem),
    Rule("max_length", recipe.max_length, recipe.max_length_problem),
    Rule("save_steps", run.save_steps),
)
"""In this order: a rule may look at what the ones before it decided. Method, token budget and recomputed layers
are decided after them, together."""


def apply_rules(s: PlanningContext) -> None:
    """Decide every setting of the table; a person's value is kept.

    Raises:
        UserError, EnvironmentProblem: such a value cannot work here; names one that can.
    """
    for rule in RULES:
        given = s.given.get(rule.name)
        if given is None:
            s.resolved[rule.name] = rule.decide(s)
            continue
        problem = rule.problem(s, given.value)
        if problem is not None:
            raise problem
        s.resolved[rule.name] = given.resolved()
