"""What a measurement on the card changes: the record of this machine, and the execution of the run in hand."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qlora_profiles import codec
from qlora_profiles.events import MeasuredEvent
from qlora_profiles.facts import Ceilings
from qlora_profiles.plan import RunPlan, with_execution
from qlora_run.machine.measurements.store import load
from qlora_run.machine.run_key import limits_of, run_key
from qlora_run.machine.selftest_results import load_results
from qlora_run.planner import retuned
from qlora_run.planner.observe import Measured, calibrated_by, record
from qlora_run.supervise.restarts import is_restart

TAKEN = "what the card took"


class Tuner:
    """Follows the plan of a run: takes in its measurements, and answers the first ones with a better execution.

    Not where the plan was made smaller after a death: what died may look like the better one, and is not tried again.
    """

    def __init__(self, plan_path: Path) -> None:
        self.plan_path = plan_path
        self.plan = codec.load(plan_path, RunPlan)
        self.ceilings: Ceilings | None = None
        self.settled = is_restart(self.plan)

    def measured_before(self) -> bool:
        """Whether this very run with this execution was measured on this machine already."""
        execution = self.plan.execution_values()
        found = load(self.plan.report).of_run(run_key(self.plan, execution))
        return any(limits == limits_of(execution) for limits, _ in found)

    def record(self, event: MeasuredEvent) -> None:
        """Keep what was measured for the next plans on this machine."""
        record(self.plan, measured_of(self.plan, event))

    def answer(self, event: MeasuredEvent) -> str:
        """The limits that the core should go on with, as JSON; the plan on disk is then the one that runs."""
        self.record(event)
        ran = with_execution(self.plan, event.limits, TAKEN)
        gave_up = [n for n in ("cuda_graphs",) if self.plan.execution[n].value and not ran.execution[n].value]
        self.ceilings = event.ceilings or self.ceilings  # measured once: the card and its host stay what they are
        measured = replace(measured_of(ran, event), ceilings=self.ceilings)
        better = (
            ran if self.settled else retuned(ran, calibrated_by(ran, measured), load_results(self.plan.report), gave_up)
        )
        if better != self.plan:
            self.plan = better
            with suppress(OSError):  # a full disk: the run goes on, and its events tell what changed
                codec.save(better, self.plan_path)
        return json.dumps(limits_of(better.execution_values(), event.limits))


def measured_of(plan: RunPlan, event: MeasuredEvent) -> Measured:
    """The event as a measurement of an execution."""
    return Measured(
        execution=with_execution(plan, event.limits, TAKEN).execution_values(),
        largest_tokens=event.largest_tokens,
        several_micro_batches=event.several_micro_batches,
        reserved_bytes=event.reserved_bytes,
        outside_bytes=event.outside_bytes,
        step_tokens=event.step_tokens,
        step_seconds=event.step_seconds,
        ceilings=event.ceilings,
    )
