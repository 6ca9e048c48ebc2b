"""Single lines about a run that more than one view says."""

from pathlib import Path

from qlora_profiles import run_folder
from qlora_profiles.events import AdaptationEvent, EvalEvent, Event, MeasuredEvent, WarningEvent
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import human_seconds
from qlora_run.report.formatting import (
    in_unit,
    loss_text,
    one_line,
    option,
    shown_path,
    size_unit,
    time_range,
    value_text,
)
from qlora_run.report.run_state import RunState


def opening_line(state: RunState, plan: RunPlan, output: str | Path) -> str:
    """What begins, or goes on, and where it writes."""
    verb = f"Going on from step {state.checkpoint.step}:" if state.checkpoint else "Training"
    where = shown_path(output)
    return one_line(f"{verb} {plan.model.name} on {shown_path(plan.data.path)} -> {where} (log: {run_folder.LOG})")


def planned_tokens_per_second(plan: RunPlan) -> float | None:
    """The speed that the plan's time stands on: tokens of a mean step over its seconds."""
    if plan.time.step_seconds <= 0:
        return None
    return plan.data.mean_tokens * plan.recipe_values().examples_per_step / plan.time.step_seconds


def speed_text(state: RunState, plan: RunPlan) -> str:
    """Tokens a second, beside the plan's."""
    speed, planned = state.tokens_per_second, planned_tokens_per_second(plan)
    if speed is None:
        return ""
    return f"{speed:,.0f} tok/s" + (f" (plan {planned:,.0f})" if planned else "")


def planned_text(plan: RunPlan) -> str:
    """What the plan expects, for a view that repeats it nowhere."""
    planned = planned_tokens_per_second(plan)
    unit, name = size_unit(plan.memory.peak_bytes)
    speed = [f"{planned:,.0f} tok/s"] if planned else []
    span = time_range(plan.time.seconds_low, plan.time.seconds_high)
    return ", ".join([*speed, f"{in_unit(plan.memory.peak_bytes, unit)} {name}", span])


def peak_text(state: RunState, plan: RunPlan) -> str:
    """The highest VRAM so far beside the plan's peak; empty where none is measured."""
    if state.vram_peak_bytes is None:
        return ""
    unit, name = size_unit(max(plan.memory.peak_bytes, state.vram_peak_bytes))
    budget = plan.memory.budget_bytes
    of = f" of {in_unit(budget, unit)}" if budget else ""
    return f"{in_unit(state.vram_peak_bytes, unit)}{of} {name} VRAM (plan {in_unit(plan.memory.peak_bytes, unit)})"


def val_text(state: RunState) -> str:
    """Held-out loss from first to last, and the best where that is another."""
    if not state.evals:
        return ""
    first, last, best = state.evals[0], state.evals[-1], state.best
    course = f"{loss_text(first.loss)} -> {loss_text(last.loss)}" if last is not first else loss_text(last.loss)
    return f"val {course}" + (f" (best {loss_text(best.loss)} @ {best.step})" if best and best is not last else "")


def eval_line(event: EvalEvent, state: RunState) -> str:
    """One evaluation as it comes in."""
    best = state.best
    when = f"step {event.step}" if event.step else "before training"
    compare = "" if best is None else ", the best" if best is event else f", best {loss_text(best.loss)} @ {best.step}"
    took = f", {human_seconds(event.seconds)}" if event.seconds >= 1 else ""
    return f"val loss {loss_text(event.loss)} ({when}{compare}; {event.rows} held-out rows{took})"


def adaptation_line(event: AdaptationEvent) -> str:
    """What changed in the execution; the recipe never does."""
    changed = [
        f"{option(name)} {value_text(name, event.before[name])} -> {value_text(name, value)}"
        for name, value in event.after.items()
        if name in event.before and event.before[name] != value
    ]
    redone = f"step {event.step} redone, " if "out of memory" in event.cause else ""
    return one_line(f"{event.cause}: {', '.join(changed)} ({redone}same recipe)")


def measured_line(event: MeasuredEvent, plan: RunPlan) -> str | None:
    """What a preflight found, beside what the plan said; nothing on a device whose memory cannot be measured."""
    if event.stage != "preflight" or not event.reserved_bytes:
        return None
    held = event.reserved_bytes + event.outside_bytes
    unit, name = size_unit(max(held, plan.memory.peak_bytes))
    said = f"the heaviest step took {in_unit(held, unit)} {name} (plan {in_unit(plan.memory.peak_bytes, unit)})"
    return f"measured in {human_seconds(event.seconds)}: {said}"


def warning_line(event: WarningEvent) -> str:
    """A warning on one line."""
    return f"warning: {one_line(event.message)}"


def lasting_line(event: Event) -> str | None:
    """The line of an event that stays worth knowing, or ``None``."""
    if isinstance(event, AdaptationEvent):
        return adaptation_line(event)
    return warning_line(event) if isinstance(event, WarningEvent) else None
