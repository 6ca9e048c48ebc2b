"""Progress where nothing can be drawn over: one line at a time, for pipes, logs and simple terminals."""

from pathlib import Path

from rich.console import Console

from qlora_profiles.errors import QloraRunError
from qlora_profiles.events import (
    CheckpointEvent,
    DoneEvent,
    EvalEvent,
    Event,
    MeasuredEvent,
    PhaseEvent,
    ReadBackEvent,
    RunEvent,
    SampleEvent,
    StepEvent,
)
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import human_bytes
from qlora_run.report.formatting import clock, end_clock, loss_text, number, one_line
from qlora_run.report.lines import eval_line, lasting_line, measured_line, opening_line, planned_text
from qlora_run.report.run_state import RunState
from qlora_run.terminal.console import console_glyphs
from qlora_run.terminal.summary import print_closing

MIN_STEPS, MIN_SECONDS = 10, 1.0
"""A step gets a line when so many steps and so much time passed since the last one,"""
MAX_SECONDS = 30.0
"""or when so much time passed; the first and the last step always do."""


class PlainView:
    """Prints what is worth a line of each event."""

    def __init__(self, console: Console, plan: RunPlan, output: Path) -> None:
        self.console, self.plan, self.output = console, plan, output
        self.glyphs = console_glyphs(console)
        self.last_printed: StepEvent | None = None
        self.phase = ""

    def begin(self, state: RunState) -> None:
        """Say what begins."""
        self.say(opening_line(state, self.plan, self.output))

    def event(self, event: Event, state: RunState) -> None:
        """Print the event's line, if it gets one."""
        line = self._line(event, state)
        if line:
            self.say(f"{clock(event.time_s)}  {line}")

    def tick(self, state: RunState) -> None:
        """Nothing: time alone gets no line."""

    def say(self, text: str) -> None:
        """Print a line at once: whoever reads a pipe waits for it."""
        self.console.print(self.glyphs.spell(text))
        self.console.file.flush()

    def end(self, state: RunState, problem: QloraRunError | None) -> None:
        """Close with the summary or with what went wrong."""
        print_closing(self.console, state, self.plan, self.output, problem)

    def _line(self, event: Event, state: RunState) -> str | None:
        if isinstance(event, StepEvent):
            return self._step_line(event, state)
        if isinstance(event, PhaseEvent):
            return self._phase_line(event)
        if isinstance(event, DoneEvent):
            return self._last_step_line(state)
        return event_line(event, state, self.plan)

    def _step_line(self, event: StepEvent, state: RunState) -> str | None:
        self.phase = ""
        if self.last_printed and not _due(self.last_printed, event) and event.step != state.steps_total:
            return None
        self.last_printed = event
        return step_line(event, state, self.plan)

    def _last_step_line(self, state: RunState) -> str | None:
        """The last step always gets its line, also where the run was stopped."""
        if state.last is None or not state.recent or state.last is self.last_printed:
            return None
        return step_line(state.last, state, self.plan)

    def _phase_line(self, event: PhaseEvent) -> str | None:
        """A phase is announced once, however often it reports how far it is."""
        if event.name == self.phase:
            return None
        self.phase = event.name
        return one_line(event.name)


def _due(last: StepEvent, event: StepEvent) -> bool:
    seconds, steps = event.time_s - last.time_s, event.step - last.step
    return (steps >= MIN_STEPS and seconds >= MIN_SECONDS) or seconds >= MAX_SECONDS


def step_line(event: StepEvent, state: RunState, plan: RunPlan) -> str:
    """One step: where, how well, how fast, until when."""
    total = state.steps_total or plan.time.steps
    left = state.seconds_left(event.time_s, plan.time.step_seconds)
    peak = event.vram_peak_bytes
    parts = [
        f"step {event.step:,}/{total:,}",
        f"loss {loss_text(event.loss)}",
        f"lr {number(event.learning_rate)}",
        f"{state.tokens_per_second:,.0f} tok/s" if state.tokens_per_second else "",
        human_bytes(peak) if peak else "",
        f"ends {end_clock(event.time_s, left)}" if left else "",
    ]
    return "  ".join(part for part in parts if part)


def event_line(event: Event, state: RunState, plan: RunPlan) -> str | None:
    """The line of an event that is neither a step nor a phase."""
    if isinstance(event, RunEvent):
        verb = f"resumed at step {event.first_step}" if event.resumed_from else "started"
        return f"{verb}: {event.steps_total:,} steps (plan: {planned_text(plan)})"
    if isinstance(event, EvalEvent):
        return eval_line(event, state)
    if isinstance(event, CheckpointEvent):
        return f"saved step {event.step:,}"
    if isinstance(event, SampleEvent) and event.samples:
        first = event.samples[0]
        return f"sample {one_line(first.prompt)!r}: {one_line(first.answer)}"
    if isinstance(event, MeasuredEvent):
        return measured_line(event, plan)
    if isinstance(event, ReadBackEvent):
        return f"read back: {one_line(event.found.words)}"
    return lasting_line(event)
