"""Events that a run's folder should hold and does not."""

from pathlib import Path

from qlora_profiles.run_folder import EVENTS, checkpoint_step, checkpoints

MOST_UNTOLD = 8
"""Steps that a card may still compute when a checkpoint is whole: set by hand."""


def lost_events(folder: Path, last: int) -> str:
    """A line where checkpoints are of later steps than ``last``, the last of which events tell; else nothing.

    The file is gone, cut, or another run's.
    """
    newest = max(map(checkpoint_step, checkpoints(folder)), default=0)
    if newest <= (last + MOST_UNTOLD if last else 0):
        return ""
    told = f"ends at step {last}" if last else "tells of no step"
    return f"{EVENTS} {told}, and checkpoint {newest} is there: what was told since, and which step was best, is lost"
