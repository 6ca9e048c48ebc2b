"""What a machine can train, in one line."""

from qlora_profiles.errors import QloraRunError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import Given, Request, RunPlan
from qlora_profiles.units import human_seconds

YARDSTICK = "Qwen/Qwen3-8B"
"""What people mean to train; a machine without a card is told how long that would take."""


def what_can_be_trained(report: HardwareReport) -> str:
    """The largest model of the catalogue that trains with ease, how long examples may be, and the next command."""
    from qlora_run.resolve import largest_length

    try:
        plan = _plan(report)
    except QloraRunError as error:
        return f"Nothing can be planned here yet: {error.message}"
    if plan.execution_values().device == "cpu":
        return f"CPU only: the demo works (qlora-run demo). {_yardstick(report)}"
    length = largest_length(plan)
    room = f" at up to {length:,} tokens" if length else ""
    return f"Ready: {plan.model.name} by {plan.recipe_values().method}{room}.\nNext: qlora-run --auto --data FILE"


def _yardstick(report: HardwareReport) -> str:
    try:
        plan = _plan(report, YARDSTICK)
    except QloraRunError:
        return "An 8B does not fit into this memory."
    return f"An 8B on 1,000 rows would take about {human_seconds(plan.time.seconds_high)} here."


def _plan(report: HardwareReport, model: str | None = None) -> RunPlan:
    from qlora_run.planning import PlanInput, make_plan

    given = {"model": Given(value=model, source="probe")} if model else {}
    return make_plan(PlanInput(request=Request(given=given), report=report, only_planning=True))
