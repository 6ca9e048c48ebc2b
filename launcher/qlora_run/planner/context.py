"""What the rules look at: the machine, what is given, the model, the data, and what is resolved already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_profiles.facts import DataFacts, LinearShape, ModelFacts
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.plan import Given, Resolved
from qlora_profiles.settings import FIRST_CARD
from qlora_run.machine.measurements.records import Calibration, Fitted, Kernels
from qlora_run.machine.selftest_results import SelftestResults


@dataclass(kw_only=True)
class PlanningContext:
    """Everything that a plan is made from; ``resolved`` grows as the rules run."""

    report: HardwareReport
    model: ModelFacts
    data: DataFacts
    given: Mapping[str, Given]
    backends: Mapping[str, str | None]
    profile: str | None = None
    recipe_name: str | None = None
    targets: tuple[LinearShape, ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    selftest_results: SelftestResults = field(default_factory=SelftestResults)
    resolved: dict[str, Resolved] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """A setting that is decided already.

        Raises:
            KeyError: no rule has decided it yet.
        """
        return self.resolved[name].value

    @property
    def gpu(self) -> Gpu | None:
        """The card that the plan computes on, or ``None`` on CPU."""
        return next(iter(self.report.cards(self.value("devices"))), None) if self.on_cuda else None

    @property
    def given_card(self) -> Gpu | None:
        """The card that would compute if one does: the one asked for, else the first."""
        return next(iter(self.report.cards(devices_given(self.given))), None)

    @property
    def on_cuda(self) -> bool:
        """True where a CUDA card computes."""
        return bool(self.value("device") == "cuda")

    @property
    def measured(self) -> Fitted | None:
        """What earlier runs measured on this machine with the kernels decided on."""
        return self.measured_with(self.value("cuda_graphs"))

    def measured_with(self, graphs: bool) -> Fitted | None:
        """The same with or without CUDA graphs; what was measured the other way says more than nothing."""
        if not self.on_cuda:
            return None
        values = {name: self.value(name) for name in Kernels.__struct_fields__}
        this, other = (Kernels(**values | {"cuda_graphs": use}) for use in (graphs, not graphs))
        return self.calibration.of(this) or self.calibration.of(other)

    @property
    def given_method(self) -> str | None:
        """The method that somebody gave; it is decided last."""
        given = self.given.get("method")
        return None if given is None else given.value

    @property
    def on_linux(self) -> bool:
        """True on Linux itself, not in WSL."""
        return self.report.platform.system == "linux" and not self.report.platform.wsl

    @property
    def longest_tokens(self) -> int:
        """Tokens of the longest example as it is cut; the limit itself where not all rows were counted."""
        limit: int = self.value("max_length")
        return max(1, min(self.data.longest_tokens, limit)) if self.data.exact else limit


def devices_given(given: Mapping[str, Given]) -> tuple[int, ...]:
    """The cards that somebody asked for, else the first."""
    return tuple(given["devices"].value) if "devices" in given else FIRST_CARD
