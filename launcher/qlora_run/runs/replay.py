"""A run once more: its recipe held fast, its execution worked out for this machine as it is now."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import structs

from qlora_profiles.errors import UserError
from qlora_profiles.plan import PATHS_IN_RECIPE, PERSON, Given, Request, Resolved, RunPlan
from qlora_profiles.run_folder import PLAN
from qlora_run.report.formatting import shown_path
from qlora_run.runs.folder import each_path, has_plan, newest_run, no_such_folder, plan_in, read_plan, way_without_plan

OF_ONE_START = ("output", "resume", "overwrite", "trust_remote_code")
"""Run settings that belong to one start of a run, not to the run. A folder may be received: trust is not inherited."""
FOLDERS = {"cache": ".", "local_dir": "config.json"}
"""Run settings that name a folder, and what must be there already: a received plan makes none elsewhere."""


def plan_of(where: Path) -> tuple[RunPlan, str]:
    """The plan in a run's folder, or in a file, and a line where only the plan's copy could be read, else nothing.

    Raises:
        UserError: there is none, or none that can be used; names what goes on from a checkpoint without it.
    """
    folder = where if where.is_dir() else where.parent
    try:
        if where.is_dir() or where.name == PLAN:
            if has_plan(folder):
                return plan_in(folder)
        elif where.is_file():
            return read_plan(where), ""
    except UserError as error:
        said = f"{error.message}; no {PLAN} that can be used"
        way = way_without_plan(folder)
        fix = f"the command that began it, with {way}" if way else "start anew: qlora-run --auto ..."
        raise UserError(said, fix) from error
    raise _no_plan(where)


def _no_plan(where: Path) -> UserError:
    if not where.is_dir():
        return no_such_folder(where)
    way, inside = way_without_plan(where), newest_run(where)
    example = f"the folder of a run, such as {shown_path(inside) if inside else 'runs/NAME-1'}"
    if way:
        return UserError(f"{where}: its {PLAN} is gone", f"the command that began it, with {way}")
    return UserError(f"{where}: no {PLAN} here, so no run of ours", example)


def input_from(plan: RunPlan, changes: Request) -> Request:
    """The request that makes the plan's recipe again.

    Every recipe value is given; of the execution and the run what a person had decided, but for where and how
    that run was started. ``changes`` win.
    """
    others = {name: r for name, r in {**plan.execution, **plan.run}.items() if name not in OF_ONE_START}
    decided = {name: r for name, r in others.items() if r.source in PERSON and _is_there(name, r.value)}
    return structs.replace(changes, given=held(plan.recipe | decided) | changes.given)


def _is_there(name: str, value: Any) -> bool:
    return name not in FOLDERS or not value or (Path(value).expanduser() / FOLDERS[name]).exists()


def held(resolved: Mapping[str, Resolved]) -> dict[str, Given]:
    """Values of a plan to be kept, by whom they were decided; no profile or recipe is asked again."""
    return {name: _held(name, r) for name, r in resolved.items()}


def _held(name: str, resolved: Resolved) -> Given:
    given = (each_path(resolved, shown_path) if name in PATHS_IN_RECIPE else resolved).given()
    if resolved.source in ("profile", "recipe"):
        given = structs.replace(given, source="config", reason=f"as in {PLAN}")
    return given
