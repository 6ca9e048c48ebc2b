"""When a recipe cannot fit: the nearest ones that do, and taking one when that is allowed."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from qlora_core.execution.rungs import SIZES
from qlora_profiles.catalogue import nearest_profile
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Given
from qlora_profiles.registry import flag, lookup
from qlora_profiles.units import in_gib
from qlora_run.model_facts import known_configs, known_facts
from qlora_run.model_facts.targets import discover_targets
from qlora_run.planner.context import PlanningContext, devices_given
from qlora_run.planner.cost.cuda_overhead import cuda_overhead_of
from qlora_run.planner.cost.inputs import CostInputs
from qlora_run.planner.cost.memory import memory_costs, smallest_peak
from qlora_run.planner.search.fit import bitsandbytes_missing, budget_bytes, search_for, smallest_method

SHORTEST = 128
SMALLEST_RANK = 4
"""Tokens and rank below which nothing is suggested: set by hand."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Settings that would make the run fit, and the peak that they lead to."""

    values: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int

    @property
    def text(self) -> str:
        """As it is typed: ``--max-length 1024 (5.1 GiB)``."""
        flags = " ".join(f"{flag(lookup(name))} {value}" for name, value in self.values.items())
        return f"{flags} ({in_gib(self.peak_bytes)})"


def cannot_fit(s: PlanningContext) -> UserError:
    """The error that names what is needed, what there is, and what would fit."""
    execution = next(execution_changes(s), None)
    if execution is not None:
        return UserError(f"{_needed(s)}, with your {_given_sizes(s)}", execution.text)
    changes = [change.text for change in (*recipe_changes(s), *smaller_models(s))]
    fixes = [*_fitting_profile(s), *changes]
    return UserError(_needed(s), " or ".join(fixes[:3]) or "a machine with more memory, or a smaller --model")


def _fitting_profile(s: PlanningContext) -> list[str]:
    """The profile made for this machine, when the plan came from another one."""
    near = nearest_profile(s.report, devices_given(s.given))
    return [f"--profile {near}"] if s.profile not in (None, near) else []


def _needed(s: PlanningContext) -> str:
    method = smallest_method(s).value
    need = search_for(s, method).smallest().memory
    budget = budget_bytes(s)
    where = "VRAM" if s.on_cuda else "memory"
    room = f" of the {in_gib(budget)} {where} there is" if budget is not None else ""
    return (
        f"{s.model.name} with {method} at {s.longest_tokens:,} tokens needs "
        f"{in_gib(need.peak_bytes + need.error_bytes)}{room}"
    )


def _given_sizes(s: PlanningContext) -> str:
    names = [name for name in SIZES if name in s.given]
    return " and ".join(f"{name} {s.given[name].value:,}" for name in names)


def execution_changes(s: PlanningContext) -> Iterator[Change]:
    """Other values for the execution settings that a person fixed, the recipe kept."""
    fixed = [name for name in reversed(SIZES) if name in s.given]
    for freed in [[name] for name in fixed] + ([fixed] if len(fixed) > 1 else []):
        found = search_for(_without(s, freed), smallest_method(s).value).run()
        if found is not None:
            values = {name: found.best.value(name) for name in freed}
            yield Change(values=values, peak_bytes=found.best.memory.peak_bytes)


def _without(s: PlanningContext, names: list[str]) -> PlanningContext:
    return replace(s, given={name: given for name, given in s.given.items() if name not in names})


def recipe_changes(s: PlanningContext) -> Iterator[Change]:
    """Recipes near this one that fit, the nearest first: another method, shorter examples, a smaller rank."""
    method = smallest_method(s).value
    can_shrink = method != "qlora-4" and s.model.quantised is None and not bitsandbytes_missing(s)
    if can_shrink and (found := search_for(s, "qlora-4").run()):
        yield Change(values={"method": "qlora-4"}, peak_bytes=found.best.memory.peak_bytes)
    yield from _shorter(s, method, {})
    yield from _smaller_rank(s, method)
    if can_shrink:
        yield from _shorter(s, "qlora-4", {"method": "qlora-4"})


def _shorter(s: PlanningContext, method: str, also: dict[str, Any]) -> Iterator[Change]:
    """The longest length below this one that fits."""
    length = search_for(s, method).longest(s.longest_tokens - 1)
    if length >= SHORTEST:
        smallest = search_for(s, method, max_length=length).smallest()
        yield Change(values={**also, "max_length": length}, peak_bytes=smallest.memory.peak_bytes)


def _smaller_rank(s: PlanningContext, method: str) -> Iterator[Change]:
    rank = s.value("lora_r") // 2 if method != "full" else 0
    while rank >= SMALLEST_RANK:
        found = search_for(s, method, rank=rank).run()
        if found is not None:
            yield Change(values={"lora_r": rank}, peak_bytes=found.best.memory.peak_bytes)
            return
        rank //= 2


def smaller_models(s: PlanningContext) -> Iterator[Change]:
    """The largest model of the same family that would fit; never taken without a person's word."""
    inputs = CostInputs.from_values(s.value, smallest_method(s).value, s.report.torch_version)
    overhead = cuda_overhead_of(s.gpu, inputs, s.measured)
    budget = budget_bytes(s)
    fitting: list[tuple[int, str, int]] = []
    for name in known_configs():
        facts = known_facts(name)
        if facts is None or facts.model_type != s.model.model_type or facts.params >= s.model.params:
            continue
        costs = memory_costs(facts, discover_targets(facts, ("all-linear",)), inputs, overhead)
        memory = smallest_peak(costs, s.longest_tokens, budget)
        if memory.fits:
            fitting.append((facts.params, name, memory.peak_bytes))
    if fitting:
        _, name, peak_bytes = max(fitting, key=lambda entry: (entry[0], -len(entry[1])))
        yield Change(values={"model": name}, peak_bytes=peak_bytes)


def taken(s: PlanningContext, change: Change) -> dict[str, Given]:
    """What is given, with a change taken that says what it replaces."""
    given = dict(s.given)
    for name, value in change.values.items():
        before = s.given[name].value if name in s.given else s.value(name) if name in s.resolved else "auto"
        reason = f"{before} does not fit; changed as --allow-recipe-change allows"
        given[name] = Given(value=value, source="tuner", reason=reason)
    return given
