"""Method, token budget, recomputed layers, fillers, switches: decided together, because each changes what the others
need."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, cast

from qlora_core.execution.rungs import FILLERS, SEARCHED, SIZES, SWITCHES, planned
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.facts import ModelFacts
from qlora_profiles.plan import Resolved
from qlora_profiles.units import in_gib
from qlora_run.planner.context import PlanningContext
from qlora_run.planner.cost.cuda_overhead import cuda_overhead_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import memory_costs
from qlora_run.planner.cost.rungs import costs_with, work_with
from qlora_run.planner.cost.speed import rates, work_of_step
from qlora_run.planner.rules.kernels import graphs_possible
from qlora_run.planner.rules.machine import offload_bytes, ram_budget_bytes
from qlora_run.planner.search.search import Candidate, Found, Search, Variant, compared, described

BITSANDBYTES = {"bitsandbytes 4-bit": "qlora-4", "bitsandbytes 8-bit": "qlora-8"}

WORTH_PRECISION = 0.25
"""How much slower an unquantised base may be and still be chosen: set by hand."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The method, why, and the execution found for it."""

    method: Resolved
    search: Search
    found: Found


def search_for(s: PlanningContext, method: str, max_length: int | None = None, rank: int | None = None) -> Search:
    """The search for a method, with a shorter length or a smaller rank put in where one is to be tried."""
    length = max_length or s.value("max_length")
    longest = min(length, s.longest_tokens)
    variants = tuple(_variants(s, method, length, rank))
    inputs = _cost_inputs(s, method, rank)
    measured = s.measured_with(True) or s.measured_with(False)
    return Search(
        variants=variants,
        rates=rates(s.report, s.gpu, inputs, measured.ceilings if measured else None),
        longest_tokens=longest,
        most_tokens=longest * s.value("examples_per_step"),
        budget_bytes=budget_bytes(s),
        token_budget=_given_size(s, "token_budget"),
        layers_recomputed=_given_size(s, "layers_recomputed"),
        fillers={name: cast(int, s.given[name].value) for name in FILLERS if name in s.given},
    )


def _variants(s: PlanningContext, method: str, length: int, rank: int | None) -> Iterator[Variant]:
    """Every choice of switches with what it costs."""
    for order, switches in enumerate(_choices(s, method, _cost_inputs(s, method, rank))):
        inputs = _cost_inputs(s, method, rank, **switches)
        known = cuda_overhead_of(s.gpu, inputs, s.measured_with(inputs.cuda_graphs))
        costs = costs_with(memory_costs(s.model, s.targets, inputs, known), switches)
        work = work_of_step(s.model, s.data, inputs, costs, s.value("examples_per_step"), length)
        yield Variant(
            rank=order,
            switches=switches,
            costs=costs,
            work=work_with(work, switches),
            fillers=frozenset(name for name in FILLERS if inputs.can(name)),
            most_offloaded_bytes=offload_bytes(s.report) if inputs.offload_activations else None,
        )


def _choices(s: PlanningContext, method: str, inputs: CostInputs) -> Iterator[dict[str, bool]]:
    """The switches with and without each that can be used, the simplest first; a person's choice is the only one."""
    for choice in product(*(_ways(s, inputs, name) for name in SWITCHES)):
        switches = dict(zip(SWITCHES, choice, strict=True))
        if switches["cuda_graphs"] in graphs_possible(s, method, offloaded=switches["offload_activations"]):
            yield switches


def _ways(s: PlanningContext, inputs: CostInputs, name: str) -> tuple[bool, ...]:
    if name in s.given:
        return (bool(s.given[name].value),)
    offload = name == "offload_activations"
    possible = s.on_cuda and offload_bytes(s.report) if offload else inputs.can(name)
    return (False, True) if possible else (False,)


def _cost_inputs(s: PlanningContext, method: str, rank: int | None, **own: Any) -> CostInputs:
    value = partial(_own_or_decided, s, own | ({"lora_r": rank} if rank else {}))
    return CostInputs.from_values(value, method, s.report.torch_version)


def _own_or_decided(s: PlanningContext, own: Mapping[str, Any], name: str) -> Any:
    return own[name] if name in own else s.value(name)


def _given_size(s: PlanningContext, name: str) -> int | None:
    return cast(int, s.given[name].value) if name in s.given else None


def budget_bytes(s: PlanningContext) -> int | None:
    """The memory that limits the run: the card's, or main memory without one."""
    budget: int | None = s.value("vram_budget_bytes")
    return budget if s.on_cuda or budget is not None else ram_budget_bytes(s)


def find_fit(s: PlanningContext) -> Fit | None:
    """The method and execution, or ``None`` when no method allowed fits."""
    if "method" in s.given:
        _check_method(s, str(s.given["method"].value))
    settled = _settled_method(s)
    return _fit(s, settled) if settled else _automatic(s)


def _settled_method(s: PlanningContext) -> Resolved | None:
    """The one given, or the one that the checkpoint is stored for."""
    if "method" in s.given:
        return s.given["method"].resolved()
    stored = BITSANDBYTES.get(s.model.quantised or "")
    return Resolved(stored, "probe", f"the checkpoint is {s.model.quantised} already") if stored else None


def _fit(s: PlanningContext, method: Resolved) -> Fit | None:
    search = search_for(s, method.value)
    found = search.run()
    return Fit(method=method, search=search, found=found) if found else None


def close_call(s: PlanningContext) -> Fit | None:
    """The smallest execution, where nothing surely fits but this may: it is measured on the card before it is run."""
    if set(SIZES) & set(s.given) or not s.on_cuda or not s.value("preflight") or s.value("allow_recipe_change"):
        return None
    method = smallest_method(s)
    search = search_for(s, method.value)
    smallest = search.smallest()
    tokens = search.largest_batch(smallest.token_budget, smallest.variant)
    if not smallest.memory.close or not smallest.variant.holds(tokens, smallest.layers_recomputed):
        return None
    return Fit(method=method, search=search, found=Found(best=smallest, fitting=0))


def smallest_method(s: PlanningContext) -> Resolved:
    """The method given, else the one of the least memory that the machine can run."""
    return _settled_method(s) or _lora_alone(s) or Resolved("qlora-4", "probe", "4 bits take the least memory")


def _lora_alone(s: PlanningContext) -> Resolved | None:
    """16 bits, where 4 are not to be had."""
    problem = bitsandbytes_problem(s)
    return Resolved("lora", "probe", f"{problem}, and 4-bit needs it") if problem else None


def _automatic(s: PlanningContext) -> Fit | None:
    """On a card the least quantised that fits, unless holding it leaves so little room that it is much slower."""
    if not s.on_cuda:
        return _on_cpu(s)
    plain = _fit(s, Resolved("lora", "probe", "the base fits in full precision: nothing is lost to quantisation"))
    if bitsandbytes_missing(s):
        return plain
    bits = 32 if s.value("compute_dtype") == "float32" else 16
    if plain is None:
        smallest = search_for(s, "lora").smallest().memory.peak_bytes
        return _fit(s, Resolved("qlora-4", "probe", f"{bits}-bit LoRA needs {in_gib(smallest)}"))
    small = _fit(s, Resolved("qlora-4", "tuner", ""))
    slower = plain.found.best.step_seconds / small.found.best.step_seconds - 1 if small else 0.0
    if small is None or slower <= WORTH_PRECISION:
        return plain
    reason = f"{bits}-bit LoRA fits, but leaves so little room that it is {slower:.0%} slower"
    return Fit(method=Resolved("qlora-4", "tuner", reason), search=small.search, found=small.found)


def _on_cpu(s: PlanningContext) -> Fit | None:
    """4 bits where they can be had: main memory is shared with everything else that runs."""
    why = "no GPU is used: 4-bit keeps RAM use and disk traffic smallest; --method lora computes in full precision"
    return _fit(s, _lora_alone(s) or Resolved("qlora-4", "probe", why))


def bitsandbytes_missing(s: PlanningContext) -> bool:
    """True where 4 bits are not to be had."""
    return bitsandbytes_problem(s) is not None


def bitsandbytes_problem(s: PlanningContext, test: str = "nf4") -> str | None:
    """The report lists packages and bitsandbytes is not among them, or its product was tried here and failed."""
    if s.report.packages and s.report.version_of("bitsandbytes") is None:
        return "bitsandbytes is not installed"
    failed_here = s.selftest_results.problem(test)
    return f"bitsandbytes failed here ({failed_here})" if failed_here else None


def _check_method(s: PlanningContext, method: str) -> None:
    """Raises: UserError or EnvironmentProblem where the method given cannot be run."""
    problem = bitsandbytes_problem(s, "nf4" if method == "qlora-4" else "int8")
    if method in BITSANDBYTES.values() and problem:
        fix = "pip install bitsandbytes" if "not installed" in problem else "qlora-run doctor"
        raise EnvironmentProblem(f"method {method}: {problem}", f"{fix}, or --method lora")
    held = BITSANDBYTES.get(s.model.quantised or "")
    if held is not None and held != method:
        stored = f"method {method}: {s.model.name} is stored in {s.model.quantised}"
        raise UserError(stored, f"--method {held}, or the original model")


def check_trainable(model: ModelFacts) -> None:
    """Raises: UserError for a checkpoint that is quantised in a way that cannot be trained here."""
    if model.quantised is not None and model.quantised not in BITSANDBYTES:
        raise UserError(
            f"{model.name}: stored quantised ({model.quantised}), which cannot be trained here",
            "the original, unquantised model; --method qlora-4 quantises it while loading",
        )


def settle(s: PlanningContext, fit: Fit) -> None:
    """Record what was found, each with what another value would do."""
    best = fit.found.best
    s.resolved["method"] = fit.method
    for name in SEARCHED:
        s.resolved[name] = s.given[name].resolved() if name in s.given else _found(s, fit, best, name)


def runner_up(s: PlanningContext, fit: Fit) -> str | None:
    """The best of the executions that were not taken, and why: ``6,144 tokens, 30 of 36 recomputed: 3% slower``."""
    best, other = fit.found.best, fit.found.runner_up
    if other is None:
        return None
    return f"{described(other, best, s.model.num_layers)}: {compared(best, other)}"


def _found(s: PlanningContext, fit: Fit, best: Candidate, name: str) -> Resolved:
    """What was found for a setting that nobody fixed."""
    if name == "token_budget":
        return _token_budget(fit, best)
    if name == "layers_recomputed":
        return _layers(s, fit, best)
    return _filled(s, fit, best, name) if name in FILLERS else _switched(s, fit, best, name)


def _token_budget(fit: Fit, best: Candidate) -> Resolved:
    smaller = max(fit.search.token_budgets[0], best.token_budget // 2)
    other = fit.search.candidate(smaller, best.layers_recomputed, best.variant, best.filled)
    changed = None if smaller == best.token_budget else f"{smaller:,}: {compared(best, other)}"
    reasons = {0: "the smallest there is", 1: "the only one that fits"}
    reason = reasons.get(fit.found.fitting, f"fastest of {fit.found.fitting:,} that fit")
    return Resolved(value=best.token_budget, source="tuner", reason=reason, if_changed=changed)


def _layers(s: PlanningContext, fit: Fit, best: Candidate) -> Resolved:
    total = s.model.num_layers
    other_count = total if best.layers_recomputed < total else 0
    other = fit.search.candidate(best.token_budget, other_count, best.variant, best.filled)
    return Resolved(
        value=best.layers_recomputed,
        source="tuner",
        reason=_layers_reason(best.layers_recomputed, total),
        if_changed=f"{other_count}: {compared(best, other)}",
    )


def _layers_reason(count: int, total: int) -> str:
    if count == 0:
        return "everything fits: nothing is computed twice"
    return f"the other {total - count} fit" if count < total else f"all {total}: memory is tight"


def _filled(s: PlanningContext, fit: Fit, best: Candidate, name: str) -> Resolved:
    """The layers of a filler, where there are any."""
    if not best.filled[name]:
        return s.resolved[name]
    other = fit.search.candidate(best.token_budget, best.layers_recomputed, best.variant, {**best.filled, name: 0})
    changed = f"0: {compared(best, other)}"
    return Resolved(value=best.filled[name], source="tuner", reason=planned(name).why, if_changed=changed)


def _switched(s: PlanningContext, fit: Fit, best: Candidate, name: str) -> Resolved:
    """A switch: on where that is better, off where it was a choice; else as it was decided before."""
    on, how = best.variant.switches[name], planned(name)
    other = _otherwise(fit, best, name)
    changed = f"{'no' if on else 'yes'}: {compared(best, other)}" if other else None
    if on:
        return Resolved(value=True, source="tuner", reason=how.why, if_changed=changed)
    if not changed or not how.why_off:
        return s.resolved[name]
    return Resolved(value=False, source="tuner", reason=how.why_off, if_changed=changed)


def _otherwise(fit: Fit, best: Candidate, name: str) -> Candidate | None:
    """The same execution with a switch turned; ``None`` where that is no choice here."""
    wanted = {**best.variant.switches, name: not best.variant.switches[name]}
    twin = next((variant for variant in fit.search.variants if variant.switches == wanted), None)
    same = best.token_budget, best.layers_recomputed, twin, best.filled
    return fit.search.candidate(*same) if twin else None
