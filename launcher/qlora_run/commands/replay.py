"""``resume`` and ``replay``: the run of a folder gone on with, or made once more."""

from pathlib import Path

from msgspec import structs

from qlora_profiles.errors import EXIT_OK, UserError
from qlora_profiles.plan import Given, Request, RunPlan, recipe_differences
from qlora_run.cli.commands import Command
from qlora_run.cli.request import build_request
from qlora_run.commands.train import start, tell_finished
from qlora_run.report.commands import on_run
from qlora_run.report.formatting import option, quoted, shown_path
from qlora_run.report.plan_changes import changes_of
from qlora_run.runs.folder import default_output, free_sibling, look, run_name
from qlora_run.runs.replay import input_from, plan_of


def run(command: Command) -> int:
    """Plan the same recipe for this machine as it is now, and train.

    Raises:
        UserError: no plan in the folder, a finished run to resume, or a model or data that changed since.
        QloraRunError: as ``train``.
    """
    from qlora_run.planner.make_plan import PlanInput, make_plan

    folder = Path(command.options["folder"])
    old, note = plan_of(folder)
    folder = folder if folder.is_dir() else folder.parent  # its plan.json was named
    changes = build_request(command, None, Path.cwd())
    changes = structs.replace(changes, notes=(*changes.notes, *filter(None, [note])))
    resumes = command.name == "resume"
    if resumes and not changes.given and look(folder).state == "finished":
        tell_finished(folder)
        return EXIT_OK
    request = _resume(folder, old, changes) if resumes else _replay(old, changes)
    plan = make_plan(PlanInput(request=request))
    _refuse_changes(folder, old, plan, resumes)
    return start(plan, as_json=command.options["json"], dry_run=command.options["dry_run"])


def _resume(folder: Path, old: RunPlan, changes: Request) -> Request:
    if look(folder).state == "finished":
        fix = f"{on_run('chat', folder)}   or   {on_run('replay', folder)}"
        raise UserError(f"{shown_path(folder)}: this run is finished", fix)
    moved = [name for name in ("output", "overwrite") if changes.value(name)]
    if moved:
        raise UserError(f"resume goes on in its own folder, so no --{moved[0]}", on_run("replay", folder))
    return _into(input_from(old, changes), folder, "the run's own folder")


def _replay(old: RunPlan, changes: Request) -> Request:
    request = input_from(old, changes)
    if "output" in changes.given:
        return request
    return _into(request, default_output(run_name(old)), "a new folder for the same run")


def _into(request: Request, folder: Path, reason: str) -> Request:
    return request.giving("output", Given(value=str(folder), source="cli", reason=reason))


def _refuse_changes(folder: Path, old: RunPlan, plan: RunPlan, resumes: bool) -> None:
    """Raise UserError where the model or the data is no longer what the run learned from."""
    different = recipe_differences(old, plan)
    if not different:
        return
    changed, how = " and ".join(option(name) for name, *_ in different), ", ".join(changes_of(different))
    stopped = f"{shown_path(folder)}: {changed} changed since this run was planned"
    if resumes:
        anew = f"put it back, or start anew: qlora-run --auto ... --output {quoted(shown_path(free_sibling(folder)))}"
        raise UserError(f"{stopped}; it cannot go on: {how}", anew)
    raise UserError(f"{stopped}; it would be another run: {how}", "put it back, or: qlora-run --auto ...")
