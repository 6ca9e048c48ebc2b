"""What the checks look at, in one frozen value: a machine that exists, or one written by hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_profiles.errors import QloraRunError
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.plan import RunPlan
from qlora_profiles.units import GIB
from qlora_run.doctor.environment import Environment
from qlora_run.machine.selftest_results import BROKEN, Trial

FULL_BYTES = 2 * GIB
"""With less of a card free none of the known models fits, not the smallest in 4 bits (set by hand)."""


def is_full(card: Gpu) -> bool:
    """Whether others hold nearly all of a card's memory."""
    free, total = card.vram_free_bytes, card.vram_total_bytes
    return free is not None and total is not None and free < min(FULL_BYTES, total / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckContext:
    """A machine with everything that is known of it.

    Attributes:
        report: the probe's.
        here: what lies beside it; empty for another machine.
        trials: results of the self-tests by name; ``untried`` says why there are none, ``remembered`` that they were
            made earlier, in this same environment.
        plan: the plan of the model asked for, or of the one that suits the machine; ``refusal`` says why there is none.
        downloaded: whether the plan's model lies on this disk; ``None`` where that is not known.
    """

    report: HardwareReport
    here: Environment = field(default_factory=Environment)
    trials: Mapping[str, Trial] = field(default_factory=dict)
    untried: str = "not tried"
    remembered: bool = False
    plan: RunPlan | None = None
    refusal: QloraRunError | None = None
    downloaded: bool | None = None

    @property
    def nvidia(self) -> tuple[Gpu, ...]:
        """NVIDIA's cards, whether torch can use them or not."""
        return tuple(gpu for gpu in self.report.gpus if gpu.vendor == "nvidia")

    @property
    def others(self) -> tuple[Gpu, ...]:
        """Cards of other makers."""
        return tuple(gpu for gpu in self.report.gpus if gpu.vendor != "nvidia")

    def tried(self, test: str) -> Trial:
        """A trial; one that was not made says why."""
        return self.trials.get(test) or Trial(test=test, state="skipped", said=self.untried)

    def found(self, test: str, key: str) -> Any:
        """What a trial that worked reported, or ``None``."""
        trial = self.tried(test)
        return trial.found.get(key) if trial.state == "ok" else None

    def broken(self, test: str) -> bool:
        """Tried, and it does not work."""
        return self.tried(test).state in BROKEN

    @property
    def wsl(self) -> bool:
        """Linux inside Windows."""
        return self.report.platform.wsl

    @property
    def windows_memory(self) -> bool:
        """Where Windows manages the card's memory: on itself (but for TCC cards) and in WSL."""
        managed = any(gpu.driver_model in (None, "wddm") for gpu in self.nvidia)
        return bool(self.nvidia) and managed and (self.report.is_windows or self.wsl)
