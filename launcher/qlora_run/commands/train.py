"""The main command: plan, show the plan, train under watch, sum up."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from qlora_profiles import codec
from qlora_profiles.errors import EXIT_OK, EnvironmentProblem, UserError
from qlora_profiles.plan import RunPlan, recipe_differences
from qlora_profiles.run_folder import MERGED_MODEL, PLAN, PLAN_COPY
from qlora_profiles.visible import visible
from qlora_run.cli.commands import Command
from qlora_run.commands.plan import show
from qlora_run.commands.plan_input import plan_input
from qlora_run.machine.required_packages import TRAINING, check_installed, check_trackers
from qlora_run.report.commands import on_run
from qlora_run.report.formatting import shown_path
from qlora_run.runs.folder import (
    check_free,
    claim,
    decisions_agree,
    look,
    occupied,
    with_full_paths,
    with_output,
)
from qlora_run.runs.replay import held

if TYPE_CHECKING:
    from qlora_run.planner.make_plan import PlanInput
    from qlora_run.report.view import View


def run(command: Command) -> int:
    """Train what was asked for; returns the exit code.

    Raises:
        UserError: a plan for another machine (``--as``), or a value, model, data or folder that cannot be used.
        EnvironmentProblem: a package that training needs is missing, or a folder cannot be written.
    """
    inputs = plan_input(command)
    if inputs.machine:
        raise UserError(
            f"--as {inputs.machine}: only a plan can be made for another machine", "qlora-run plan --as ..."
        )
    return start(plan_to_run(inputs), as_json=command.options["json"], dry_run=command.options["dry_run"])


def plan_to_run(inputs: "PlanInput") -> RunPlan:
    """The plan with its folder. Raises QloraRunError where nothing can be planned.

    Where that holds an unfinished run of the same recipe, what nobody decided stays as it was there: a method
    decided by the memory that is free now must not part a run from its first half.
    """
    from qlora_run.planner.make_plan import make_plan

    plan = with_output(make_plan(inputs))
    old = look(_output(plan)).plan
    changed = recipe_differences(old, plan) if old and not plan.run_values().overwrite else []
    if old is None or not changed or not decisions_agree(old, plan):
        return plan
    given = held({name: old.recipe[name] for name, *_ in changed}) | inputs.request.given
    request = msgspec.structs.replace(inputs.request, given=given)
    return with_output(make_plan(replace(inputs, request=request, report=plan.report)))


def start(plan: RunPlan, *, as_json: bool = False, dry_run: bool = False) -> int:
    """Claim the plan's output folder, say what will be done, and do it; returns the exit code.

    Raises:
        UserError: the folder is taken, or its checkpoint belongs to another recipe.
        EnvironmentProblem: a package is missing, or the folder cannot be written.
    """
    from qlora_run.supervise.supervisor import run_core

    output = _output(plan)
    if finished_already(output, plan):
        tell_finished(output)
        return EXIT_OK
    check_trackers(plan.run_values().report_to)
    if dry_run:
        check_free(output, plan)
        show(plan, as_json=as_json)
        return 0
    check_installed(*TRAINING)
    check_checkpoint(plan)
    with occupied(output, _tell):
        found = claim(output, plan)
        if found.note and found.note not in plan.notes:
            plan = msgspec.structs.replace(plan, notes=(*plan.notes, found.note))
        _save(plan, output)
        if not as_json:
            show(plan)
        return run_core(output / PLAN, output, _view(plan, output, as_json))


def finished_already(output: Path, plan: RunPlan) -> bool:
    """Whether this very run has come to its end there, and a person does not want it once more."""
    found = look(output)
    if plan.run_values().overwrite or found.state != "finished" or found.plan is None:
        return False
    return not recipe_differences(found.plan, plan) and not _merge_is_missing(output, plan)


def _merge_is_missing(output: Path, plan: RunPlan) -> bool:
    wanted = plan.run_values().merge and plan.recipe_values().method != "full"
    return wanted and not (output / MERGED_MODEL).exists()


def tell_finished(output: Path) -> None:
    """What is there, and the ways on, on standard error: with ``--json`` the other one is for programs."""
    step = look(output).last_step
    _tell(
        f"{shown_path(output)}: finished already, at step {step}; nothing was done\n"
        f"  talk to it     {on_run('chat', output)}\n"
        f"  one model      {on_run('merge', output)}\n"
        f"  train longer   the same command with more --epochs and --output ANOTHER-FOLDER\n"
        f"  train again    the same command with --overwrite"
    )


def _tell(text: str) -> None:
    print(visible(text), file=sys.stderr)


def check_checkpoint(plan: RunPlan) -> None:
    """Raise UserError for a ``--resume FOLDER`` that this run cannot go on from."""
    from qlora_core.train.checkpoints import choose

    resume = plan.run_values().resume
    if resume != "auto":
        choose(resume, _output(plan), plan.recipe_digest(), base=plan.base_parts())


def _output(plan: RunPlan) -> Path:
    return Path(plan.run_values().output).expanduser()


def _save(plan: RunPlan, output: Path) -> None:
    try:
        for name in (PLAN_COPY, PLAN):
            codec.save(with_full_paths(plan), output / name)
    except OSError as error:
        message = f"{output / PLAN}: cannot be written ({error.strerror or error})"
        raise EnvironmentProblem(message, "--output on another disk") from error


def _view(plan: RunPlan, output: Path, as_json: bool) -> "View":
    if as_json:
        from qlora_run.terminal.json_view import JsonView

        return JsonView()
    from qlora_run.terminal.run_view import run_view

    return run_view(plan, output)
