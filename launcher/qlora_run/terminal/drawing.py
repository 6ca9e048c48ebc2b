"""The few lines that show a run as it stands."""

from msgspec import Struct

from qlora_profiles import run_folder
from qlora_profiles.events import AdaptationEvent, WarningEvent
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import human_seconds
from qlora_run.report.formatting import clock, ends_at, loss_text, one_line
from qlora_run.report.lines import lasting_line, peak_text, speed_text, val_text
from qlora_run.report.run_state import Phase, RunState
from qlora_run.terminal.cells import fit, wrapped
from qlora_run.terminal.glyphs import Glyphs

BAR_CELLS, SPARK_CELLS = 20, 16
"""Terminal cells of a bar and of a curve."""
LASTING = 3
"""Adaptations and warnings in view; the file holds all."""
SILENT_PACES, SILENT_SECONDS = 5, 60
"""No news for this many paces, and at least so long, is worth a word."""
INDENT = " " * 7


class Drawing(Struct, frozen=True, kw_only=True):
    """A run as of ``now_s`` (seconds since 1970), for ``width`` cells; once it is ``over`` only what lasts."""

    state: RunState
    plan: RunPlan
    now_s: float
    glyphs: Glyphs
    width: int
    celsius: int | None = None
    over: bool = False

    def lines(self) -> list[str]:
        """From top to bottom; each begins with its label, or with a time of day."""
        lines = [self._step(), self._loss(), self._speed()] if self.state.last else []
        if not self.over:
            lines += [self._saved(), *self._samples()] if self.state.last else []
            lines += [*self._doing(), self._silence()]
            lines = lines if any(lines) else ["now    starting"]
        return [fit(self.glyphs.spell(line), self.width) for line in lines if line] + self._lasting()

    def _step(self) -> str:
        state, planned_seconds = self.state, self.plan.time.step_seconds
        total = state.steps_total or self.plan.time.steps
        share = state.step / total if total else 0.0
        left = state.seconds_left(self.now_s, planned_seconds)
        end = f"ends {ends_at(self.now_s, left)}" if left is not None and state.recent else ""
        if self.over:
            end = f"took {human_seconds(state.elapsed_seconds())}"
        return f"step   {state.step:,}/{total:,} [{self.glyphs.bar(share, BAR_CELLS)}] {share:.0%}   {end}"

    def _loss(self) -> str:
        """Training loss from its first step to its last, then the held-out rows."""
        losses, last = self.state.losses.losses, self.state.last
        line = f"loss   train {loss_text(losses[0])}" if losses else "loss  "
        if len(losses) > 1 and last:
            line += f" {self.glyphs.sparkline(losses, SPARK_CELLS)} {loss_text(last.loss)}"
        return f"{line}   {val_text(self.state)}".rstrip()

    def _speed(self) -> str:
        heat = f"{self.celsius} °C" if self.celsius is not None else ""
        parts = [part for part in (speed_text(self.state, self.plan), peak_text(self.state, self.plan), heat) if part]
        return "speed  " + "   ".join(parts) if parts else ""

    def _saved(self) -> str:
        hint, saved = " · Ctrl-C saves and stops", self.state.checkpoint
        if saved is None:
            first = min(self.plan.run_values().save_steps, self.state.steps_total or self.plan.time.steps)
            return f"saved  nothing yet, first at step {first:,}{hint}"
        return f"saved  step {saved.step:,}, {human_seconds(max(self.now_s - saved.time_s, 0))} ago{hint}"

    def _samples(self) -> list[str]:
        """The first sample prompt with its answers; the closing summary shows more."""
        before, now = self.state.sample_before, self.state.sample_now
        if before is None or not before.samples:
            return []
        first = before.samples[0]
        lines = [f"sample {one_line(first.prompt)}", f"{INDENT}before: {one_line(first.answer)}"]
        return [*lines, f"{INDENT}now:    {one_line(now.samples[0].answer)}"] if now and now.samples else lines

    def _doing(self) -> list[str]:
        """What has been done since the last step, the last of it still going on."""
        phases = self.state.phases
        ends = [phase.started_s for phase in phases[1:]] + [self.now_s]
        labels = ["done   "] * (len(phases) - 1) + ["now    "]
        return [label + self._phase(p, end_s) for label, p, end_s in zip(labels, phases, ends, strict=False)]

    def _phase(self, phase: Phase, end_s: float) -> str:
        line = f"{one_line(phase.name):<28} {human_seconds(max(end_s - phase.started_s, 0)):>7}"
        if phase.done is None or not phase.total:
            return line
        return f"{line}   [{self.glyphs.bar(phase.done / phase.total, BAR_CELLS)}] {phase.done:,}/{phase.total:,}"

    def _silence(self) -> str:
        """A word when steps have stopped coming in: waiting without a sign is the worst view of all."""
        state = self.state
        if state.phases or not state.pace_seconds or state.worked_s is None:
            return ""
        silent_seconds = self.now_s - state.worked_s
        if silent_seconds < max(SILENT_SECONDS, SILENT_PACES * state.pace_seconds):
            return ""
        usual = human_seconds(state.pace_seconds)
        return f"quiet  no news for {human_seconds(silent_seconds)}; a step takes {usual}, see {run_folder.LOG}"

    def _lasting(self) -> list[str]:
        """The last adaptations and warnings, whole: they are for reading."""
        events: list[AdaptationEvent | WarningEvent] = [*self.state.adaptations, *self.state.warnings]
        lines: list[str] = []
        for event in sorted(events, key=lambda event: event.time_s)[-LASTING:]:
            first, *rest = wrapped(self.glyphs.spell(lasting_line(event) or ""), self.width - len(INDENT))
            lines += [f"{clock(event.time_s)}  {first}", *(INDENT + line for line in rest)]
        return lines
