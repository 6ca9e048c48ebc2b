"""The values that flow from a person's wish to a run: Profile, Request, RunPlan. All frozen.

Every resolved setting says where it comes from; later sources win:
default < probe / tuner < profile < config file < command line.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct, field, structs

from qlora_profiles.facts import DataFacts, MemoryEstimate, ModelFacts, TimeEstimate
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.settings import Execution, Recipe, Run

Source = Literal["default", "probe", "tuner", "data", "profile", "config", "cli"]
PERSON: tuple[Source, ...] = ("profile", "config", "cli")
"""Sources that are somebody's decision: such a value is kept or refused, never changed."""

S = TypeVar("S")

PATHS_IN_RECIPE = ("model", "data", "local_dir")


class Given(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value that somebody asked for, already of its setting's type."""

    value: Any
    source: Source
    reason: str = ""


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything asked for, the strongest source of each setting only."""

    given: dict[str, Given] = field(default_factory=dict)
    profile: str | None = None
    notes: tuple[str, ...] = ()

    def value(self, name: str, otherwise: Any = None) -> Any:
        """What was asked for ``name``, or ``otherwise``."""
        return self.given[name].value if name in self.given else otherwise


class Machine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The class of machine that a profile is made for."""

    system: Literal["windows", "linux"] | None = None
    vram_gib: float | None = None
    cpu: bool = False


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named set of values for a class of machine."""

    name: str
    about: str
    machine: Machine
    settings: dict[str, Any] = field(default_factory=dict)


class Resolved(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A setting's value in a plan, where it comes from, why, and what another value would do."""

    value: Any
    source: Source
    reason: str = ""
    if_changed: str | None = None


class RunPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole truth of a run: the core needs nothing else.

    ``runner_up`` is the best execution that was not taken, and why not.
    """

    schema: Literal[1] = 1
    recipe: dict[str, Resolved]
    execution: dict[str, Resolved]
    run: dict[str, Resolved]
    report: HardwareReport
    model: ModelFacts
    data: DataFacts
    memory: MemoryEstimate
    time: TimeEstimate
    profile: str | None = None
    runner_up: str | None = None
    notes: tuple[str, ...] = ()

    def recipe_values(self) -> Recipe:
        """The recipe, typed."""
        return _typed(self.recipe, Recipe)

    def execution_values(self) -> Execution:
        """The execution, typed."""
        return _typed(self.execution, Execution)

    def run_values(self) -> Run:
        """The run settings, typed."""
        return _typed(self.run, Run)

    def cards(self) -> tuple[Gpu, ...]:
        """The cards that compute, the one of the first process first; empty on a CPU."""
        execution = self.execution_values()
        return self.report.cards(execution.devices) if execution.device == "cuda" else ()

    def recipe_digest(self) -> str:
        """Identity of what is learned: equal on every machine, whatever the paths are called."""
        values = {k: r.value for k, r in self.recipe.items() if k not in PATHS_IN_RECIPE}
        values |= {"model": self.model.fingerprint, "data": self.data.fingerprint}
        text = json.dumps(msgspec.to_builtins(values), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _typed(resolved: dict[str, Resolved], kind: type[S]) -> S:
    return msgspec.convert({name: r.value for name, r in resolved.items()}, kind, strict=False)


def with_execution(plan: RunPlan, values: Mapping[str, Any], reason: str) -> RunPlan:
    """The plan with other values in its execution, which the tuner takes for ``reason``."""
    changed = {
        name: structs.replace(plan.execution[name], value=value, source="tuner", reason=reason)
        for name, value in values.items()
        if plan.execution[name].value != value
    }
    return structs.replace(plan, execution=plan.execution | changed)


def recipe_differences(old: RunPlan, new: RunPlan) -> list[tuple[str, Any, Any]]:
    """What is learned differently: (setting, old value, new value); paths count by their content."""
    pairs = [(k, old.recipe[k].value, r.value) for k, r in new.recipe.items() if k in old.recipe]
    changed = [(k, a, b) for k, a, b in pairs if k not in PATHS_IN_RECIPE and plain(a) != plain(b)]
    for name in ("model", "data"):
        if getattr(old, name).fingerprint != getattr(new, name).fingerprint:
            changed.append((name, old.recipe[name].value, new.recipe[name].value))
    return changed


def plain(value: Any) -> Any:
    """A setting's value as it is read back from JSON."""
    return list(value) if isinstance(value, tuple) else value
