"""``doctor``: what this machine can train, and what stands in the way."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_run.cli.commands import Command
from qlora_run.commands.json_output import say_json
from qlora_run.commands.plan_input import plan_input

if TYPE_CHECKING:
    from qlora_run.doctor.examination import Examined


def run(command: Command) -> int:
    """Look, try, and say; exit code 0 ready, 1 with warnings, 3 cannot train."""
    options = command.options
    if options["apply"] and not options["fix"]:
        raise UserError("--apply runs what --fix prints", "qlora-run doctor --fix --apply")
    from qlora_run.doctor.examination import examination

    began = time.monotonic()
    if sys.stderr.isatty() and not (options["quick"] or options["as"] or options["json"]):
        print("trying out what training needs: about 10 s ...", file=sys.stderr, flush=True)
    examined = examination(plan_input(command), quick=options["quick"])
    if options["report"]:
        _write_report(examined, Path(options["report"]))
    if options["json"]:
        say_json(examined.diagnosis)
    elif options["fix"]:
        return _fix(examined, run_them=options["apply"])
    else:
        _show(examined, time.monotonic() - began)
    return examined.diagnosis.exit_code


def _show(examined: "Examined", seconds: float) -> None:
    from qlora_run.terminal.doctor_view import print_diagnosis

    print_diagnosis(examined.diagnosis, examined.subject.report.name, seconds)


def _fix(examined: "Examined", *, run_them: bool) -> int:
    """Print the script, or run the part of it that touches this Python environment alone."""
    from qlora_run.doctor.script import apply, safe_commands, script

    checks, code = examined.diagnosis.checks, examined.diagnosis.exit_code
    if not run_them:
        sys.stdout.write(script(checks, examined.subject.report).replace("\r\n", "\n"))
        return code
    _refuse_system_python(examined)
    lines = safe_commands(checks)
    for line in lines or ("nothing here can be mended without you: qlora-run doctor --fix",):
        print(line, flush=True)
    failed = apply(lines)
    if failed:
        raise EnvironmentProblem(f"this did not work: {failed}", "qlora-run doctor")
    print("Next: qlora-run doctor")
    return code


def _refuse_system_python(examined: "Examined") -> None:
    """Raise UserError where an install would go into the system's own Python, or another machine was looked at."""
    here = examined.subject.here
    if not here.looked:
        raise UserError("--apply mends this machine only", "qlora-run doctor --fix --apply, without --as")
    if here.virtual is False:
        raise UserError("--apply changes virtual environments only", "qlora-run doctor --fix, and run what you like")


def _write_report(examined: "Examined", path: Path) -> None:
    from qlora_run.doctor.bug_report import bug_report, this_person

    text = json.dumps(bug_report(examined.subject, examined.diagnosis, this_person()), indent=2, ensure_ascii=False)
    try:
        path.write_text(text + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        raise EnvironmentProblem(f"{path}: {error.strerror or error}", "--report FILE in another folder") from error
    print(f"{path}: written, without names, folders, tokens or serial numbers; attach it as it is", file=sys.stderr)
