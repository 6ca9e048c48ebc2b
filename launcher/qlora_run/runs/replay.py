"""A run once more: its recipe held fast, its execution worked out for this machine as it is now."""

from collections.abc import Mapping
from pathlib import Path

from msgspec import structs

from qlora_profiles.errors import UserError
from qlora_profiles.plan import PATHS_IN_RECIPE, PERSON, Given, Request, Resolved, RunPlan
from qlora_profiles.run_folder import PLAN
from qlora_run.report.formatting import shown_path
from qlora_run.runs.folder import each_path, newest_run, no_such_folder, read_plan

OF_ONE_START = ("output", "resume", "overwrite")
"""Run settings that belong to one start of a run, not to the run."""


def plan_of(where: Path) -> RunPlan:
    """The plan in a run's folder, or in a file. Raises UserError when there is none."""
    path = where / PLAN if where.is_dir() else where
    if path.is_file():
        return _usable(path)
    if not where.is_dir():
        raise no_such_folder(where)
    inside = newest_run(where)
    fix = f"the folder of a run, such as {shown_path(inside) if inside else 'runs/NAME-1'}"
    raise UserError(f"{where}: no {PLAN} here, so no run of ours", fix)


def _usable(path: Path) -> RunPlan:
    try:
        return read_plan(path)
    except UserError as error:
        raise UserError(f"{error.message}; no {PLAN} that can be used", "start anew: qlora-run --auto ...") from error


def input_from(plan: RunPlan, changes: Request) -> Request:
    """The request that makes the plan's recipe again.

    Every recipe value is given; of the execution and the run what a person had decided, but for where and how
    that run was started. ``changes`` win.
    """
    others = {name: r for name, r in {**plan.execution, **plan.run}.items() if name not in OF_ONE_START}
    decided = {name: r for name, r in others.items() if r.source in PERSON}
    return structs.replace(changes, given=held(plan.recipe | decided) | changes.given)


def held(resolved: Mapping[str, Resolved]) -> dict[str, Given]:
    """Values of a plan to be kept, by whom they were decided; a profile that decided one is not asked again."""
    return {name: _held(name, r) for name, r in resolved.items()}


def _held(name: str, resolved: Resolved) -> Given:
    given = (each_path(resolved, shown_path) if name in PATHS_IN_RECIPE else resolved).given()
    if resolved.source == "profile":
        given = structs.replace(given, source="config", reason=f"as in {PLAN}")
    return given
