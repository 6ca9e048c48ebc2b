"""The values that flow from what a person wrote to a run: Written, Given, Request, Resolved, RunPlan. All frozen.

Every resolved setting says where it comes from; later sources win:
default < probe / tuner < profile < recipe < config file < command line.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct, field, structs

from qlora_profiles.facts import DataFacts, MemoryEstimate, ModelFacts, TimeEstimate
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.registry import lookup
from qlora_profiles.settings import Execution, Recipe, Run

Source = Literal["default", "probe", "tuner", "data", "profile", "recipe", "config", "cli"]
PERSON: tuple[Source, ...] = ("profile", "recipe", "config", "cli")
"""Sources that are somebody's decision: such a value is kept or refused, never changed."""
WHY_GIVEN = {
    "cli": "you asked for it",
    "config": "your config file says so",
    "recipe": "the recipe says so",
    "profile": "the profile says so",
}

S = TypeVar("S")

PATHS_IN_RECIPE = ("model", "data", "local_dir")


class MachineClass(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The class of machine that a profile is made for; ``vram_gib`` is of its card, in GiB."""

    system: Literal["windows", "linux"] | None = None
    vram_gib: float | None = None
    cpu: bool = False


class Profile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named set of values for a class of machine."""

    name: str
    about: str
    machine: MachineClass
    settings: dict[str, Any] = field(default_factory=dict)


class Written(Struct, frozen=True, kw_only=True):
    """A name and a raw value as somebody wrote them.

    ``label`` is the name as written (``--lora_r``, ``lora_config.r``), ``place`` the file and line if it has one,
    ``family`` the family of the config section that it stands in.
    """

    name: str
    raw: Any
    label: str
    place: str = ""
    family: str | None = None


NOBODY = Written(name="", raw=None, label="")
"""What a value was read from that a program gave."""


class Given(Struct, frozen=True, kw_only=True):
    """A value that somebody gave, already of its setting's type.

    ``note`` is told as long as the value counts; ``written`` is what it was read from.
    """

    value: Any
    source: Source
    reason: str = ""
    note: str = ""
    written: Written = NOBODY

    def resolved(self) -> "Resolved":
        """The value kept as it is."""
        return Resolved(self.value, self.source, self.reason or WHY_GIVEN.get(self.source, "given"))


class Request(Struct, frozen=True, kw_only=True):
    """Everything given, merged: of each setting what counts, never ``None`` where that leaves it to the planner.

    The values of ``profile`` are among them; it is kept to be compared with the machine. So are those of the prepared
    recipe called ``recipe_name``.
    """

    given: dict[str, Given] = field(default_factory=dict)
    profile: Profile | None = None
    recipe_name: str | None = None
    notes: tuple[str, ...] = ()

    def value(self, name: str, otherwise: Any = None) -> Any:
        """What was given for ``name``, or ``otherwise``."""
        return self.given[name].value if name in self.given else otherwise

    def giving(self, name: str, given: Given) -> "Request":
        """The same with one value more, or another one."""
        return structs.replace(self, given=self.given | {name: given})


def strongest(*levels: Mapping[str, Given]) -> dict[str, Given]:
    """Of each setting what the last level that names it gives; ``None`` hands one that is tuned to the planner.

    Raises:
        UserError: a level names no setting.
    """
    merged = {name: given for level in levels for name, given in level.items()}
    return {name: given for name, given in merged.items() if given.value is not None or not lookup(name).tuned}


class Resolved(Struct, frozen=True, forbid_unknown_fields=True):
    """A setting's value in a plan, where it comes from, why, and what another value would do."""

    value: Any
    source: Source
    reason: str = ""
    if_changed: str | None = None

    def given(self) -> Given:
        """The value to be kept in another plan, by whom it was decided."""
        return Given(value=self.value, source=self.source, reason=self.reason)


class RunPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole truth of a run: the core needs nothing else.

    ``runner_up`` is the best execution that was not taken, and why not; ``recipe_name`` the prepared recipe.
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
    recipe_name: str | None = None
    runner_up: str | None = None
    notes: tuple[str, ...] = ()

    def recipe_values(self) -> Recipe:
        """The recipe, typed.

        Raises:
            msgspec.ValidationError: a value that its setting cannot have, as a plan edited by hand may hold.
        """
        return _typed(self.recipe, Recipe)

    def execution_values(self) -> Execution:
        """The execution, typed. Raises as ``recipe_values``."""
        return _typed(self.execution, Execution)

    def run_values(self) -> Run:
        """The run settings, typed. Raises as ``recipe_values``."""
        return _typed(self.run, Run)

    def cards(self) -> tuple[Gpu, ...]:
        """The cards that compute, the one of the first process first; empty on a CPU."""
        execution = self.execution_values()
        return self.report.cards(execution.devices) if execution.device == "cuda" else ()

    def base_parts(self) -> dict[str, str]:
        """Digests of what the rows are rendered, encoded and computed with, by part, as far as they are known."""
        template = {"template": self.data.template_digest} if self.data.template_digest else {}
        return self.model.contents | template

    def recipe_digest(self) -> str:
        """Identity of what is learned, 16 hexadecimal digits: equal on every machine, whatever the paths are called."""
        values = {k: r.value for k, r in self.recipe.items() if k not in PATHS_IN_RECIPE}
        values |= {"model": self.model.fingerprint, "data": self.data.fingerprint}
        text = json.dumps(msgspec.to_builtins(values), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _typed(resolved: dict[str, Resolved], kind: type[S]) -> S:
    return msgspec.convert({name: r.value for name, r in resolved.items()}, kind, strict=False)


def with_execution(plan: RunPlan, values: Mapping[str, Any], reason: str) -> RunPlan:
    """The plan with other values in its execution, which the tuner takes for ``reason``.

    Raises:
        KeyError: a name that is no setting of the execution.
    """
    changed = {
        name: structs.replace(plan.execution[name], value=value, source="tuner", reason=reason)
        for name, value in values.items()
        if plan.execution[name].value != value
    }
    return structs.replace(plan, execution=plan.execution | changed)


def other_parts(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The parts of a base (:meth:`RunPlan.base_parts`) that are others now; what one side does not know is none."""
    return [part for part in old if part in new and old[part] != new[part]]


def recipe_differences(old: RunPlan, new: RunPlan) -> list[tuple[str, Any, Any]]:
    """What is learned differently: (setting, old value, new value); paths count by their content."""
    pairs = [(k, old.recipe[k].value, r.value) for k, r in new.recipe.items() if k in old.recipe]
    changed = [(k, a, b) for k, a, b in pairs if k not in PATHS_IN_RECIPE and plain(a) != plain(b)]
    if old.data.fingerprint != new.data.fingerprint:
        before, after = old.recipe["data"].value, new.recipe["data"].value
        changed.append(("data", after if _places(before) == _places(after) else before, after))
    known = [name for name, *_ in changed]
    return changed + [change for change in _base_differences(old, new) if change[0] not in known]


def _places(paths: Any) -> list[Path]:
    return [Path(path).absolute() for path in ([paths] if isinstance(paths, str) else paths or ())]


def _base_differences(old: RunPlan, new: RunPlan) -> Iterator[tuple[str, Any, Any]]:
    """What the base is otherwise, in the form of ``recipe_differences``: another one, or the same with other parts."""
    parts = other_parts(old.base_parts(), new.base_parts())
    inside = " and ".join(part for part in parts if part != "template")
    before, after = old.recipe["model"].value, new.recipe["model"].value
    if Path(before).absolute() == Path(after).absolute():
        before = after
    if old.model.fingerprint != new.model.fingerprint and (before != after or not inside):
        yield "model", before, after
    elif inside:
        yield "model", before, f"{after} with other {inside}"
    if "template" in parts:
        name, text = "chat_template", new.recipe["chat_template"].value or "the model's own"
        yield name, old.recipe[name].value or "the model's own", f"{text} with other text"


def plain(value: Any) -> Any:
    """A setting's value as it is read back from JSON."""
    return list(value) if isinstance(value, tuple) else value
