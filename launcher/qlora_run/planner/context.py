"""What the rules look at: the machine, what is given, the model, the data, and what is resolved already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qlora_profiles.facts import DataFacts, LinearShape, ModelFacts
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.plan import Given, Resolved
from qlora_profiles.settings import FIRST_CARD
from qlora_profiles.units import GIB
from qlora_run.machine.measurements.records import Calibration, Fitted, Kernels
from qlora_run.machine.selftest_results import Learned


@dataclass(kw_only=True)
class PlanningContext:
    """Everything that a plan is made from; ``resolved`` grows as the rules run."""

    report: HardwareReport
    model: ModelFacts
    data: DataFacts
    given: Mapping[str, Given]
    backends: Mapping[str, str | None]
    profile: str | None = None
    targets: tuple[LinearShape, ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    learned: Learned = field(default_factory=Learned)
    resolved: dict[str, Resolved] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """A setting that is decided already."""
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
        """The longest example after cutting; the limit itself where not all rows were counted."""
        limit: int = self.value("max_length")
        return max(1, min(self.data.longest_tokens, limit)) if self.data.exact else limit


def devices_given(given: Mapping[str, Given]) -> tuple[int, ...]:
    """The cards that somebody asked for, else the first."""
    return tuple(given["devices"].value) if "devices" in given else FIRST_CARD


def version_of(report: HardwareReport, package: str) -> tuple[int, ...] | None:
    """An installed package's version as numbers, ``None`` when it is not installed."""
    names = {name.lower().replace("_", "-"): text for name, text in report.packages.items()}
    text = names.get(package) or (report.torch.version if package == "torch" else None)
    return None if text is None else as_numbers(text)


def torch_version(report: HardwareReport) -> tuple[int, ...] | None:
    """The installed torch's version as numbers: what its own files say, else the package's metadata."""
    return as_numbers(report.torch.version) if report.torch.version else version_of(report, "torch")


def as_numbers(version: str) -> tuple[int, ...]:
    """``"2.13.0+cu130"`` as (2, 13, 0)."""
    parts = version.split("+")[0].split(".")
    digits = ["".join(ch for ch in part if ch.isdigit()) for part in parts[:3]]
    return tuple(int(part) for part in digits if part)


def in_gib(count: float) -> str:
    """Bytes as ``11.2 GiB``."""
    return f"{count / GIB:.1f} GiB"
