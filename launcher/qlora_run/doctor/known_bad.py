"""The table of versions that do not work together, and how it is read. The knowledge itself is ``known_bad.yaml``."""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from typing import Literal

import msgspec
from msgspec import Struct
from packaging.specifiers import SpecifierSet

from qlora_profiles.hardware import HardwareReport
from qlora_run.doctor import remedies
from qlora_run.doctor.diagnosis import Fix
from qlora_run.doctor.requirements import allows

System = Literal["windows", "linux", "wsl", "macos"]


class _Mend(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Packages to install, or another build of torch (``torch`` narrows its version)."""

    install: str = ""
    torch_backend: str = ""
    torch: str = ""


class BadPair(Struct, frozen=True, forbid_unknown_fields=True):
    """An entry of the table."""

    when: dict[str, str]
    what: str
    consequence: str
    verdict: Literal["fail", "warn"]
    fix_with: _Mend = msgspec.field(name="fix")
    system: System | None = None


class MachineVersions(Struct, frozen=True, kw_only=True):
    """The part of a report that the table speaks of: versions by name, the cards' capabilities, the system."""

    versions: dict[str, str]
    capabilities: tuple[str, ...]
    system: System | None

    @classmethod
    def of(cls, report: HardwareReport) -> "MachineVersions":
        """That of a report."""
        versions = {name.lower().replace("_", "-"): text for name, text in report.packages.items()}
        cards = [gpu for gpu in report.gpus if gpu.vendor == "nvidia"]
        named = {
            "cuda": report.torch.cuda,
            "torch": report.torch.version,
            "python": report.platform.python,
            "driver": cards[0].driver if cards else None,
        }
        system = "wsl" if report.platform.wsl else report.platform.system
        return cls(
            versions=versions | {name: text for name, text in named.items() if text},
            capabilities=tuple(f"{c[0]}.{c[1]}" for gpu in cards if (c := gpu.capability)),
            system=None if system == "other" else system,
        )


class KnownBadPair(Struct, frozen=True, kw_only=True):
    """A pair of the table that this machine has, with its versions."""

    pair: BadPair
    evidence: str

    @property
    def verdict(self) -> str:
        """fail or warn."""
        return self.pair.verdict

    @property
    def seen(self) -> str:
        """What is bad, with the versions here."""
        return f"{self.pair.what} (here: {self.evidence})"

    @property
    def consequence(self) -> str:
        """What follows for training."""
        return self.pair.consequence

    def fix(self) -> Fix:
        """The command."""
        mend = self.pair.fix_with
        if mend.torch_backend:
            return remedies.torch_build(mend.torch_backend, mend.torch)
        return remedies.install(*mend.install.split())


@cache
def table() -> tuple[BadPair, ...]:
    """The whole table, read once. Raises msgspec.ValidationError for an entry that is none."""
    import yaml

    text = (files("qlora_run.doctor") / "known_bad.yaml").read_text(encoding="utf-8")
    return tuple(msgspec.convert(yaml.safe_load(text), list[BadPair]))


def known_bad(machine: MachineVersions, pairs: Sequence[BadPair] | None = None) -> Iterator[KnownBadPair]:
    """The pairs of the table that a machine has."""
    for pair in table() if pairs is None else pairs:
        if pair.system not in (None, machine.system):
            continue
        found = {name: _version_in(machine, name, wanted) for name, wanted in pair.when.items()}
        if all(found.values()):
            yield KnownBadPair(pair=pair, evidence=", ".join(f"{name} {text}" for name, text in found.items()))


def _version_in(machine: MachineVersions, name: str, wanted: str) -> str | None:
    """The version that is within ``wanted``, or ``None``."""
    versions = machine.capabilities if name == "capability" else (machine.versions.get(name),)
    specifier = SpecifierSet(wanted)
    return next((text for text in versions if text and allows(specifier, text)), None)
