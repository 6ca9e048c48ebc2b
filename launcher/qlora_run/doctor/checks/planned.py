"""What the planner says: the same memory estimate as that of a plan and of training."""

from qlora_profiles.units import gib
from qlora_run.doctor import remedies
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.findings import Finding, fail, note, ok, skipped


def plan(s: CheckContext) -> Finding:
    """Whether there is a plan at all."""
    if s.refusal is not None:
        fix = remedies.place(s.refusal.fix or "qlora-run plan")
        return fail(s.refusal.message, "training does not start", fix)
    if s.plan is None:
        return skipped("nothing was planned")
    memory = s.plan.memory
    room = f" of {gib(memory.budget_bytes)}" if memory.budget_bytes else ""
    kind = "VRAM" if s.plan.execution_values().device == "cuda" else "RAM"
    method = s.plan.recipe_values().method
    seen = f"{s.plan.model.name} by {method}: {gib(memory.peak_bytes)}{room} GiB {kind}"
    if memory.close:
        return note(seen, "so close that only the card can tell, before the first step")
    return ok(seen, s.plan.time.basis)


def several_cards(s: CheckContext) -> Finding:
    """One card trains; more are named."""
    if len(s.nvidia) < 2:
        return skipped("there is one card at most")
    seen = f"{len(s.nvidia)} cards: {', '.join(sorted({card.name for card in s.nvidia}))}"
    return note(seen, "a run uses the first one", remedies.place("--devices 1 uses the second"))
