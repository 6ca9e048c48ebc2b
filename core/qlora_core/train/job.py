"""What a run of the trainer stands on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qlora_core.backends.protocol import Backend, Loaded
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.model.packing import Example
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.session.ranks import SINGLE, Ranks
from qlora_core.train.best_checkpoint import BestCheckpoint
from qlora_profiles.plan import RunPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Everything that a run of the trainer stands on. ``plan`` is where its execution starts, not what runs later."""

    plan: RunPlan
    backend: Backend
    loaded: Loaded
    train: Sequence[Example]
    held_out: Sequence[Example]
    log: EventLog
    control: Control
    memory: DeviceMemory
    output: Path
    best_checkpoint: BestCheckpoint | None = None
    ranks: Ranks = SINGLE
