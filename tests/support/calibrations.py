"""Recording measurements over and over; a module of its own so that a spawned process can import it by name."""

from pathlib import Path

from qlora_profiles.plan import RunPlan
from qlora_run.planner.observe import Measured, record


def record_often(plan: RunPlan, measured: Measured, folder: str, times: int) -> None:
    """Add one measurement to this machine's record so many times, as a launcher does."""
    for _ in range(times):
        assert record(plan, measured, Path(folder)) is not None
