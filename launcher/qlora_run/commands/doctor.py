"""``doctor``: what this machine can train, and what stands in the way."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import print_json
from qlora_run.commands.plan_input import plan_input

if TYPE_CHECKING:
    from qlora_run.doctor.examination import Examination


def run(command: Command) -> int:
    """Look, try, and say; exit code 0 ready, 1 with warnings, 3 cannot train.

    Raises:
        UserError: ``--apply`` without ``--fix``, for another machine, or outside a virtual environment.
        EnvironmentProblem: a fix that was run failed, or the report cannot be written.
    """
    options = command.options
    if options["apply"] and not options["fix"]:
        raise UserError("--apply runs what --fix prints", "qlora-run doctor --fix --apply")
    from qlora_run.doctor.examination import examine

    began = time.monotonic()
    if sys.stderr.isatty() and not (options["quick"] or options["as"] or options["json"]):
        print("trying out what training needs: about 10 s ...", file=sys.stderr, flush=True)
    examination = examine(plan_input(command), quick=options["quick"])
    if options["report"]:
        _write_report(examination, Path(options["report"]))
    if options["json"]:
        print_json(examination.diagnosis)
    elif options["fix"]:
        return _fix(examination, run_them=options["apply"])
    else:
        _show(examination, time.monotonic() - began)
    return examination.diagnosis.exit_code


def _show(examination: "Examination", seconds: float) -> None:
    from qlora_run.terminal.doctor_view import print_diagnosis

    print_diagnosis(examination.diagnosis, examination.context.report.name, seconds)


def _fix(examination: "Examination", *, run_them: bool) -> int:
    """Print the script, or run the part of it that touches this Python environment alone."""
    from qlora_run.doctor.script import apply, safe_commands, script

    checks, code = examination.diagnosis.checks, examination.diagnosis.exit_code
    if not run_them:
        sys.stdout.write(script(checks, examination.context.report).replace("\r\n", "\n"))
        return code
    _refuse_system_python(examination)
    lines = safe_commands(checks)
    for line in lines or ("nothing here can be mended without you: qlora-run doctor --fix",):
        print(line, flush=True)
    failed = apply(lines)
    if failed:
        raise EnvironmentProblem(f"this did not work: {failed}", "qlora-run doctor")
    print("Next: qlora-run doctor")
    return code


def _refuse_system_python(examination: "Examination") -> None:
    """Raise UserError where an install would go into the system's own Python, or another machine was looked at."""
    here = examination.context.here
    if not here.looked:
        raise UserError("--apply mends this machine only", "qlora-run doctor --fix --apply, without --as")
    if here.virtual is False:
        raise UserError("--apply changes virtual environments only", "qlora-run doctor --fix, and run what you like")


def _write_report(examination: "Examination", path: Path) -> None:
    from qlora_run.doctor.bug_report import bug_report, this_person

    text = json.dumps(
        bug_report(examination.context, examination.diagnosis, this_person()), indent=2, ensure_ascii=False
    )
    try:
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror or error}", "--report FILE in another folder") from error
    print(f"{path}: written, without names, folders, tokens or serial numbers; attach it as it is", file=sys.stderr)
