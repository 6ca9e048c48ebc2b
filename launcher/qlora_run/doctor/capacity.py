"""What a machine can train, in one line, and the command that does it."""

from qlora_profiles.errors import QloraRunError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import Given, Request, RunPlan
from qlora_profiles.units import gib, human_seconds
from qlora_run.doctor.check_context import CheckContext

YARDSTICK = "Qwen/Qwen3-8B"
"""What people mean to train; a machine without a card is told how long that would take."""
METHODS = {"qlora-4": "QLoRA 4-bit", "qlora-8": "QLoRA 8-bit", "lora": "16-bit LoRA", "full": "full training"}


def what_can_be_trained(s: CheckContext) -> str:
    """Method, card, memory, the longest example, and why Unsloth is not used; never "ready" without a card."""
    if s.plan is None:
        return f"Nothing can be planned here yet: {s.refusal.message if s.refusal else 'unknown'}"
    execution = s.plan.execution_values()
    if execution.device == "cpu":
        return f"CPU only: the demo works (a few minutes). {_yardstick(s.report)}"
    from qlora_run.planner import largest_length

    length = largest_length(s.plan)
    method, card = METHODS[s.plan.recipe_values().method], s.plan.cards()[0]
    budget = f", {gib(s.plan.memory.budget_bytes)} GiB usable" if s.plan.memory.budget_bytes else ""
    room = f", {s.plan.model.name} at up to {length:,} tokens" if length else f", {s.plan.model.name}"
    return f"Ready: {method} on {card.name}{budget}{room}{_unsloth(s.plan)}."


def next_command(s: CheckContext) -> str:
    """What to run now."""
    on_card = s.plan is not None and s.plan.execution_values().device != "cpu"
    return "qlora-run --auto --data FILE" if on_card else "qlora-run demo"


def _unsloth(plan: RunPlan) -> str:
    """Why the faster backend is not used, where it is not."""
    backend = plan.execution["backend"]
    if backend.value == "unsloth":
        return ", with Unsloth"
    if plan.report.version_of("unsloth") is None:
        return ", Unsloth is not installed"
    return f", backend {backend.value}: {backend.reason}"


def _yardstick(report: HardwareReport) -> str:
    plan = _plan(report, YARDSTICK)
    if plan is None:
        return "An 8B does not fit into this memory."
    return f"An 8B on 1,000 rows would take about {human_seconds(plan.time.seconds_high)} here."


def _plan(report: HardwareReport, model: str) -> RunPlan | None:
    from qlora_run.planner.make_plan import PlanInput, make_plan

    request = Request(given={"model": Given(value=model, source="probe")})
    try:
        return make_plan(PlanInput(request=request, report=report, only_planning=True))
    except QloraRunError:
        return None
