"""A run once more: its recipe held fast, its execution worked out for this machine as it is now."""

from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.plan import PATHS_IN_RECIPE, PERSON, Given, Request, Resolved, RunPlan
from qlora_profiles.run_folder import PLAN
from qlora_run.folder import each_path, newest_run, no_such_folder, read_plan
from qlora_run.view.words import shown_path

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
    held = {name: held_value(name, r) for name, r in plan.recipe.items()}
    others = {name: r for name, r in {**plan.execution, **plan.run}.items() if name not in OF_ONE_START}
    held |= {name: held_value(name, r) for name, r in others.items() if r.source in PERSON}
    return Request(given=held | changes.given, notes=changes.notes)


def held_value(name: str, resolved: Resolved) -> Given:
    """A plan's value to be kept, by whom it was decided; a profile that decided it is not asked again."""
    value = each_path(resolved, shown_path).value if name in PATHS_IN_RECIPE else resolved.value
    if resolved.source == "profile":
        return Given(value=value, source="config", reason=f"as in {PLAN}")
    return Given(value=value, source=resolved.source, reason=resolved.reason)
