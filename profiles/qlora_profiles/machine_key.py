"""The identity of a machine: what decides whether something that was measured or tried on it still holds.

Free memory, temperature and load come and go and are no part of it. Records need more or less of it: the whole for
whether a library works, only the card and what allocates on it for how much memory that takes.
"""

import hashlib
import sys
from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from qlora_profiles.hardware import HardwareReport


class CardKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A card with its driver. Two of one kind are equal."""

    vendor: str
    name: str
    driver: str | None
    capability: tuple[int, int] | None
    mig: bool | None


class MachineKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine and what is installed on it, or the part of that on which a kind of record depends.

    ``packages`` has versions by name in lower case, torch's as its files tell it; ``system`` and ``python`` are what
    the platform says of itself, ``torch`` its build and that build's CUDA.
    """

    cards: tuple[CardKey, ...] = ()
    cuda_driver: str | None = None
    system: tuple[str | bool | None, ...] = ()
    python: tuple[str | None, ...] = ()
    torch: tuple[str | None, ...] = ()
    packages: dict[str, str] = {}

    def of_cuda_cards(self, packages: Collection[str], numbers: Sequence[int] | None = None) -> "MachineKey":
        """What NVIDIA cards, by the numbers that CUDA gives them or all, and some packages decide alone: on any system
        and with any other Python."""
        cards = tuple(card for card in self.cards if card.vendor == "nvidia")
        if numbers is not None:
            cards = tuple(cards[number] for number in numbers if number < len(cards))
        return MachineKey(cards=cards, packages={n: v for n, v in self.packages.items() if n in packages})


def machine_key(report: HardwareReport) -> MachineKey:
    """The whole identity of the machine of a report, as the Python that runs this sees it."""
    platform, torch = report.platform, report.torch
    packages = {name.lower(): version for name, version in report.packages.items()}
    return MachineKey(
        cards=tuple(
            CardKey(
                vendor=gpu.vendor,
                name=gpu.name,
                driver=gpu.driver or report.cuda_driver,
                capability=gpu.capability,
                mig=gpu.mig,
            )
            for gpu in report.gpus
        ),
        cuda_driver=report.cuda_driver,
        system=(platform.system, platform.release, platform.build, platform.wsl),
        python=(platform.python, sys.prefix),
        torch=(torch.build, torch.cuda),
        packages=packages | ({"torch": torch.version} if torch.version else {}),
    )


def digest(*parts: Any) -> str:
    """A name for files, 16 hexadecimal digits, from all that a record depends on: equal values, equal names.

    Raises:
        TypeError: a part that msgspec cannot encode.
    """
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]
