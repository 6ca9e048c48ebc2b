"""``plan``: everything but the training, also for a machine that is not this one."""

from dataclasses import replace
from pathlib import Path

from qlora_profiles.plan import RunPlan
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import print_json
from qlora_run.commands.plan_input import plan_input
from qlora_run.runs.folder import with_output


def run(command: Command) -> int:
    """Print the plan, or how it differs from a saved one. Raises QloraRunError where nothing can be planned."""
    from qlora_run.planner.make_plan import make_plan
    from qlora_run.runs.replay import input_from, plan_of

    old = plan_of(Path(command.options["from"]))[0] if command.options.get("from") else None
    inputs = plan_input(command, only_planning=True)
    if old is not None:
        inputs = replace(inputs, request=input_from(old, inputs.request))
    show(with_output(make_plan(inputs)), old, as_json=command.options["json"], full=command.options["full"])
    return 0


def show(plan: RunPlan, old: RunPlan | None = None, *, as_json: bool = False, full: bool = False) -> None:
    """The plan as text or JSON, and what it does otherwise than ``old``."""
    if as_json:
        print_json(plan)
        return
    from qlora_run.terminal.console import console_glyphs, make_console
    from qlora_run.terminal.plan_diff import plan_diff_text
    from qlora_run.terminal.plan_view import print_plan

    console = make_console()
    print_plan(plan, console, full)
    if old is not None:
        console.print()
        console.print(plan_diff_text(old, plan, console.width, ascii=console_glyphs(console).ascii_only), end="")
