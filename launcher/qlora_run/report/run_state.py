"""Everything that a run has said, folded into one value. Pure: every view and every test uses the same."""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from qlora_profiles.events import (
    AdaptationEvent,
    CheckpointEvent,
    DoneEvent,
    EvalEvent,
    Event,
    MeasuredEvent,
    PhaseEvent,
    ReadBack,
    ReadBackEvent,
    RunEvent,
    SampleEvent,
    StepEvent,
    WarningEvent,
)

MAX_POINTS = 512
"""Points of a loss curve, set by hand: more than any screen draws."""
RECENT_STEPS = 64
"""Steps that the pace and the speed are taken from."""


class Point(Struct, frozen=True):
    """Consecutive steps as one: the first of them, how many, and their mean loss."""

    step: int
    count: int
    loss: float

    def merged(self, other: "Point") -> "Point":
        """Both as one point."""
        count = self.count + other.count
        return Point(self.step, count, (self.loss * self.count + other.loss * other.count) / count)


class Curve(Struct, frozen=True, kw_only=True):
    """The training loss over all steps, in at most ``MAX_POINTS`` points however long the run is."""

    steps_per_point: int = 1
    points: tuple[Point, ...] = ()

    def add(self, step: int, loss: float) -> "Curve":
        """With one step more; steps from ``step`` on are forgotten first, because they were done again."""
        points, new = self.before(step).points, Point(step, 1, loss)
        if points and points[-1].count < self.steps_per_point:
            points, new = points[:-1], points[-1].merged(new)
        return Curve(steps_per_point=self.steps_per_point, points=(*points, new))._thinned()

    def before(self, step: int) -> "Curve":
        """Only the points before ``step``."""
        if not self.points or self.points[-1].step < step:
            return self
        return Curve(steps_per_point=self.steps_per_point, points=tuple(p for p in self.points if p.step < step))

    def _thinned(self) -> "Curve":
        if len(self.points) <= MAX_POINTS:
            return self
        pairs = [self.points[i : i + 2] for i in range(0, len(self.points), 2)]
        merged = tuple(pair[0].merged(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs)
        return Curve(steps_per_point=self.steps_per_point * 2, points=merged)

    @property
    def losses(self) -> list[float]:
        """The mean loss of each point, in order."""
        return [p.loss for p in self.points]


class Phase(Struct, frozen=True, kw_only=True):
    """Something that is not a step, when it began, and how far it is."""

    name: str
    started_s: float
    done: int | None = None
    total: int | None = None


class RunState(Struct, frozen=True, kw_only=True):
    """A run as it stands. ``step`` is the last optimizer step that counts.

    ``recent`` holds the last steps of this process and ``phases`` what it has been doing since its last step.
    ``earlier_seconds`` are those of processes that ended; ``started_s`` is when the present one began.
    ``limits`` has what the present process computes within, by name, as far as it said; the rest is as planned.
    Only what was learned after step ``best_after`` can still be kept as the best.
    """

    run: RunEvent | None = None
    step: int = 0
    last: StepEvent | None = None
    recent: tuple[StepEvent, ...] = ()
    phases: tuple[Phase, ...] = ()
    losses: Curve = Curve()
    evals: tuple[EvalEvent, ...] = ()
    sample_before: SampleEvent | None = None
    sample_now: SampleEvent | None = None
    checkpoint: CheckpointEvent | None = None
    adaptations: tuple[AdaptationEvent, ...] = ()
    limits: dict[str, Any] = {}
    warnings: tuple[WarningEvent, ...] = ()
    read_back: ReadBack | None = None
    done: DoneEvent | None = None
    vram_peak_bytes: int | None = None
    started_s: float | None = None
    worked_s: float | None = None
    earlier_seconds: float = 0.0
    best_after: int = 0

    def after(self, event: Event) -> "RunState":
        """The state once ``event`` happened."""
        state: RunState = _RULES[type(event)](self._begun(event.time_s), event)
        return state if isinstance(event, PhaseEvent | WarningEvent) else _with(state, worked_s=event.time_s)

    def _begun(self, time_s: float) -> "RunState":
        state = self.closed() if self.done else self
        return state if state.started_s is not None else _with(state, started_s=time_s)

    def closed(self) -> "RunState":
        """As it stands after its process ended, with or without a last word: the history of the next one."""
        return _with(
            self,
            earlier_seconds=self.elapsed_seconds(),
            started_s=None,
            worked_s=None,
            read_back=None,
            done=None,
            phases=(),
            recent=(),
            limits={},
        )

    def elapsed_seconds(self, now_s: float | None = None) -> float:
        """Time spent on the run by all its processes, up to ``now_s`` or the last thing done."""
        until = self.worked_s if now_s is None or self.done else now_s
        if self.started_s is None or until is None:
            return self.earlier_seconds
        return self.earlier_seconds + max(until - self.started_s, 0.0)

    @property
    def steps_total(self) -> int | None:
        """All steps of the run, once known."""
        return self.run.steps_total if self.run else None

    @property
    def best(self) -> EvalEvent | None:
        """The evaluation with the lowest loss after training began, of an adapter that is still there."""
        counted = (e for e in self.evals if e.step > self.best_after and e.loss == e.loss)
        return min(counted, key=lambda e: e.loss, default=None)

    @property
    def pace_seconds(self) -> float | None:
        """Seconds from step to step lately, evaluations and checkpoints included; ``None`` before two steps."""
        if len(self.recent) < 2:
            return None
        return (self.recent[-1].time_s - self.recent[0].time_s) / (len(self.recent) - 1)

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the recent steps; the first of a process, which warms up, counts only while it is alone."""
        steps = self.recent[1:] or self.recent
        seconds = sum(s.step_seconds for s in steps)
        return sum(s.tokens for s in steps) / seconds if seconds > 0 else None

    def seconds_left(self, now_s: float, planned_step_seconds: float) -> float | None:
        """Time to the last step, as of ``now_s``."""
        if self.steps_total is None:
            return None
        left = (self.steps_total - self.step) * (self.pace_seconds or planned_step_seconds)
        since = now_s - self.recent[-1].time_s if self.recent else 0.0
        return max(left - max(since, 0.0), 0.0)


def fold(events: Iterable[Event], start: RunState | None = None) -> RunState:
    """The state after all ``events``."""
    state = start or RunState()
    for event in events:
        state = state.after(event)
    return state


def _with(state: RunState, **changes: Any) -> RunState:
    return msgspec.structs.replace(state, **changes)


def _on_run(state: RunState, event: RunEvent) -> RunState:
    """A process can start stepping; what an earlier one did from that step on is done again."""
    if state.recent:  # the earlier process was killed: it left no last word
        state = _with(state.closed(), started_s=event.time_s)
    first = event.first_step
    return _with(
        state,
        run=event,
        limits=event.limits or state.limits,
        best_after=first - 1 if event.best_lost else state.best_after,
        step=first - 1,
        losses=state.losses.before(first),
        evals=tuple(e for e in state.evals if e.step < first),
        sample_now=state.sample_now if state.sample_now and state.sample_now.step < first else None,
        checkpoint=state.checkpoint if state.checkpoint and state.checkpoint.step < first else None,
        last=state.last if state.last and state.last.step < first else None,
    )


def _on_phase(state: RunState, event: PhaseEvent) -> RunState:
    same = bool(state.phases) and state.phases[-1].name == event.name
    started_s = state.phases[-1].started_s if same else event.time_s
    phase = Phase(name=event.name, started_s=started_s, done=event.done, total=event.total)
    return _with(state, phases=(*(state.phases[:-1] if same else state.phases), phase))


def _on_step(state: RunState, event: StepEvent) -> RunState:
    return _with(
        state,
        step=event.step,
        last=event,
        recent=(*(s for s in state.recent if s.step < event.step), event)[-RECENT_STEPS:],
        losses=state.losses.add(event.step, event.loss),
        phases=(),
        vram_peak_bytes=_highest(state.vram_peak_bytes, event.vram_peak_bytes),
    )


def _on_eval(state: RunState, event: EvalEvent) -> RunState:
    return _with(state, evals=(*(e for e in state.evals if e.step < event.step), event))


def _on_sample(state: RunState, event: SampleEvent) -> RunState:
    return _with(state, **{"sample_before" if event.step == 0 else "sample_now": event})


def _on_checkpoint(state: RunState, event: CheckpointEvent) -> RunState:
    return _with(state, checkpoint=event)


def _on_adaptation(state: RunState, event: AdaptationEvent) -> RunState:
    return _with(state, adaptations=(*state.adaptations, event), limits=state.limits | event.after)


def _on_measured(state: RunState, event: MeasuredEvent) -> RunState:
    """What was held before the first step is no part of the run's own peak."""
    return _with(state, phases=())


def _on_read_back(state: RunState, event: ReadBackEvent) -> RunState:
    return _with(state, read_back=event.found, phases=())


def _on_warning(state: RunState, event: WarningEvent) -> RunState:
    """Said again, a warning counts once."""
    others = (w for w in state.warnings if w.message != event.message)
    return _with(state, warnings=(*others, event))


def _on_done(state: RunState, event: DoneEvent) -> RunState:
    return _with(
        state,
        done=event,
        limits=event.limits or state.limits,
        phases=(),
        vram_peak_bytes=_highest(state.vram_peak_bytes, event.vram_peak_bytes),
    )


def _highest(one: int | None, other: int | None) -> int | None:
    return max((b for b in (one, other) if b is not None), default=None)


_RULES: dict[type, Any] = {
    RunEvent: _on_run,
    PhaseEvent: _on_phase,
    StepEvent: _on_step,
    EvalEvent: _on_eval,
    SampleEvent: _on_sample,
    CheckpointEvent: _on_checkpoint,
    AdaptationEvent: _on_adaptation,
    MeasuredEvent: _on_measured,
    ReadBackEvent: _on_read_back,
    WarningEvent: _on_warning,
    DoneEvent: _on_done,
}
