"""``doctor``: what this machine can train, and what stands in the way."""

import time

from qlora_profiles.hardware import HardwareReport
from qlora_run.cli.commands import Command
from qlora_run.commands.asked import plan_input
from qlora_run.commands.say import say_json
from qlora_run.doctor.findings import Diagnosis


def run(command: Command) -> int:
    """Look, try, and say; exit code 0 ready, 1 with warnings, 3 cannot train."""
    from qlora_run.doctor import functional, machine, network
    from qlora_run.doctor.capacity import what_can_be_trained
    from qlora_run.doctor.findings import diagnose
    from qlora_run.planning import machine_report

    began = time.monotonic()
    asked = plan_input(command)
    report = machine_report(asked)
    findings = machine.findings(report) + ([] if asked.machine else functional.findings() + network.findings())
    diagnosis = diagnose(findings, what_can_be_trained(report))
    if command.options["json"]:
        say_json(diagnosis)
    else:
        _show(diagnosis, report, time.monotonic() - began)
    return diagnosis.exit_code


def _show(diagnosis: Diagnosis, report: HardwareReport, seconds: float) -> None:
    from qlora_run.view.doctor_view import print_diagnosis

    print_diagnosis(diagnosis, report.name, seconds)
