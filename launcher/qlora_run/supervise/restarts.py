"""After a death that the core could not handle itself: the same run once more, from its last checkpoint, smaller."""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec

from qlora_core.execution.limits import Limits
from qlora_core.execution.rungs import usable_rungs
from qlora_core.session.event_log import EventLog
from qlora_profiles import codec, events
from qlora_profiles.plan import Resolved, RunPlan
from qlora_run.supervise.exit_status import ExitStatus

MOST_RESTARTS = 3
"""Set by hand."""
CAUSE = "the training process died"
REASON = "smaller, because the training process died"


class Restarts:
    """Decides after each end whether to go on, and makes the plan of the next process.

    A process that got no further than the one before it would only die again.
    """

    def __init__(self, plan_path: Path, output: Path) -> None:
        self.plan_path, self.output = plan_path, output
        self.made = 0
        self.step_before = 0
        self.going_on = False

    def take(self, end: ExitStatus, say: Callable[[str], None]) -> bool:
        """Whether there is a next process, told by ``say``; its plan is then in place and the change written down."""
        self.going_on = end.died and self.made < MOST_RESTARTS and end.state.step > self.step_before
        if not self.going_on:
            return False
        self.made, self.step_before = self.made + 1, end.state.step
        saved = end.state.checkpoint.step if end.state.checkpoint else 0
        say(f"{_first_line(end)}. Going on from step {saved}, smaller (restart {self.made} of {MOST_RESTARTS}).")
        plan = codec.load(self.plan_path, RunPlan)
        codec.save(self._next_plan(plan, end.state.limits, saved + 1), self.plan_path)
        return True

    def _next_plan(self, plan: RunPlan, ran: Mapping[str, Any], step: int) -> RunPlan:
        """The plan of a process that begins smaller than the one that died had become, ``ran`` by name."""
        before = limits_in_force(plan, ran)
        usable = usable_rungs(plan.execution_values())
        after = before.smaller(usual_lengths(plan), plan.model.num_layers, usable) or before
        changed = [f.name for f in fields(Limits) if getattr(before, f.name) != getattr(after, f.name)]
        log = EventLog(self.output)
        log.write(
            events.AdaptationEvent,
            step=step,
            cause=CAUSE,
            before={name: getattr(before, name) for name in changed},
            after={name: getattr(after, name) for name in changed},
        )
        log.close()
        execution = {f.name: _set(plan.execution[f.name], getattr(after, f.name)) for f in fields(Limits)}
        run = {"resume": _set(plan.run["resume"], "auto"), "overwrite": _set(plan.run["overwrite"], False)}
        return msgspec.structs.replace(plan, execution=plan.execution | execution, run=plan.run | run)


def limits_in_force(plan: RunPlan, ran: Mapping[str, Any]) -> Limits:
    """What a process of ``plan`` computes within, after the changes that it told of; ``ran`` by name."""
    known = {f.name for f in fields(Limits)}
    return replace(Limits.of(plan.execution_values()), **{name: ran[name] for name in ran if name in known})


def is_restart(plan: RunPlan) -> bool:
    """Whether the plan was made smaller because a process of its run had died."""
    return any(resolved.reason == REASON for resolved in plan.execution.values())


def usual_lengths(plan: RunPlan) -> list[int]:
    """Lengths (tokens) of a step with the longest example among middling ones."""
    middling = max(1, round(plan.data.mean_tokens))
    longest = max(1, min(plan.data.longest_tokens, plan.recipe_values().max_length))
    return [longest, *[min(middling, longest)] * (plan.recipe_values().examples_per_step - 1)]


def _set(resolved: Resolved, value: Any) -> Resolved:
    return resolved if resolved.value == value else Resolved(value=value, source="tuner", reason=REASON)


def _first_line(end: ExitStatus) -> str:
    return end.problem.message.splitlines()[0] if end.problem else CAUSE
