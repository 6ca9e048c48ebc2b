"""What the rules look at: the machine, the wishes, the model, the data, and what is decided already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qlora_profiles.facts import DataFacts, LinearShape, ModelFacts
from qlora_profiles.hardware import Gpu, HardwareReport
from qlora_profiles.plan import PERSON, Given, Profile, Request, Resolved, Source
from qlora_profiles.registry import lookup, parse, settings
from qlora_profiles.settings import FIRST_CARD
from qlora_profiles.units import GIB
from qlora_run.calibration.records import Calibration, Fitted, Kernels
from qlora_run.learned import Learned

SOURCE_WORDS = {"cli": "you asked for it", "config": "your config file says so", "profile": "the profile says so"}


class Choice(NamedTuple):
    """A rule's answer: the value, where it comes from, and why."""

    value: Any
    source: Source
    reason: str


@dataclass(kw_only=True)
class Situation:
    """Everything that a plan is made from; ``chosen`` grows as the rules run."""

    report: HardwareReport
    model: ModelFacts
    data: DataFacts
    wishes: Mapping[str, Given]
    backends: Mapping[str, str | None]
    profile: str | None = None
    targets: tuple[LinearShape, ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    learned: Learned = field(default_factory=Learned)
    chosen: dict[str, Resolved] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """A setting that is decided already."""
        return self.chosen[name].value

    @property
    def gpu(self) -> Gpu | None:
        """The card that the plan computes on, or ``None`` on CPU."""
        return next(iter(self.report.cards(self.value("devices"))), None) if self.on_cuda else None

    @property
    def asked_card(self) -> Gpu | None:
        """The card that would compute if one does: the one asked for, else the first."""
        return next(iter(self.report.cards(devices_asked(self.wishes))), None)

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
    def wished_method(self) -> str | None:
        """The method that somebody asked for; it is decided last."""
        given = self.wishes.get("method")
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

    def resolved(self, name: str, choice: Choice) -> None:
        """Record a decision."""
        self.chosen[name] = Resolved(value=choice.value, source=choice.source, reason=choice.reason)


def merged_wishes(request: Request, profile: Profile | None) -> dict[str, Given]:
    """What was asked for, the strongest of each: a person's request, then a profile, then a request's own guesses.

    ``None`` for a setting that the planner can decide is the wish that it does.
    """
    guessed = {name: given for name, given in request.given.items() if given.source not in PERSON}
    said = {name: given for name, given in request.given.items() if given.source in PERSON}
    wishes = guessed | (_of_profile(profile) if profile else {}) | said
    return {name: given for name, given in wishes.items() if given.value is not None or not settings()[name].tuned}


def _of_profile(profile: Profile) -> dict[str, Given]:
    reason = f"profile {profile.name}"
    return {
        name: Given(value=parse(lookup(name), raw), source="profile", reason=reason)
        for name, raw in profile.settings.items()
    }


def devices_asked(wishes: Mapping[str, Given]) -> tuple[int, ...]:
    """The cards that somebody asked for, else the first."""
    return tuple(wishes["devices"].value) if "devices" in wishes else FIRST_CARD


def asked(given: Given) -> Choice:
    """A wish as a decision."""
    return Choice(given.value, given.source, given.reason or SOURCE_WORDS.get(given.source, "given"))


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
