"""Named settings for classes of machines, shipped ones and a person's own, and what differs on this machine."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path

from msgspec import Struct

from qlora_profiles.errors import UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.own_files import own_names, read_own, save_own
from qlora_profiles.plan import Profile
from qlora_profiles.profile_file import read_profile, write_profile
from qlora_profiles.settings import FIRST_CARD
from qlora_profiles.suggest import hint
from qlora_profiles.units import GIB

_FOLDER = files("qlora_profiles") / "profiles"
NEAR_ENOUGH = 0.9
"""A card sold as 12 GB has a little less; this share of it still counts as the same class."""


class Difference(Struct, frozen=True, kw_only=True):
    """One way in which a machine is not the one that a profile is made for, and what that does."""

    what: str
    effect: str

    @property
    def text(self) -> str:
        """In one line."""
        return f"{self.what}: {self.effect}"


@cache
def profile_names() -> tuple[str, ...]:
    """The shipped profiles by name: by system, the smallest card first."""
    names = [entry.name.removesuffix(".yaml") for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml")]
    return tuple(sorted(names, key=lambda name: (name.split("-")[0], len(name), name)))


def load_profile(name: str, extended_by: tuple[str, ...] = ()) -> Profile:
    """The profile called ``name``: one that comes with the program, or a person's own.

    ``extended_by`` are the profiles that led here, so that none extends itself.

    Raises:
        UserError: there is none (names the nearest), or its file has a mistake.
    """
    if name in extended_by:
        raise UserError(f"profile {name}: extends itself ({' -> '.join((*extended_by, name))})", "remove one extends")
    if name in profile_names():
        return _shipped(name)
    if name not in own_names("profile"):
        known = (*profile_names(), *own_names("profile"))
        raise UserError(f"unknown profile {name}{hint(name, known)}", f"one of {', '.join(known)}")
    return read_profile(read_own("profile", name), name, lambda base: load_profile(base, (*extended_by, name)))


@cache
def _shipped(name: str) -> Profile:
    return read_profile((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), name)


def save_profile(profile: Profile, *, replace: bool = False) -> Path:
    """Store a person's profile. Raises UserError for a name that is shipped, or as ``save_own``."""
    if profile.name in profile_names():
        raise UserError(f"profile {profile.name}: one that comes with the program is called that", "another name")
    return save_own("profile", profile.name, write_profile(profile), replace=replace)


def check_profile(profile: Profile, report: HardwareReport, devices: Sequence[int] = FIRST_CARD) -> list[Difference]:
    """What of this machine differs from the one that the profile is made for, and what would happen.

    Raises:
        UserError: the profile cannot run here; names the one that can.
    """
    if profile.machine.cpu:
        return _cpu_differences(profile, report, devices)
    if not report.cuda_gpus:
        raise UserError(
            f"profile {profile.name}: made for an NVIDIA card with a CUDA build of torch; {_without_cuda(report)}",
            f"--profile {nearest_profile(report)}, or qlora-run doctor",
        )
    return [*_system_difference(profile, report), *_vram_difference(profile, report, devices)]


def _without_cuda(report: HardwareReport) -> str:
    if any(gpu.vendor == "nvidia" for gpu in report.gpus):
        return f"there is a card, but torch {report.torch.version or '(none)'} cannot use it"
    return "there is no such card"


def _cpu_differences(profile: Profile, report: HardwareReport, devices: Sequence[int]) -> list[Difference]:
    card = next(iter(report.cards(devices)), None)
    if card is None:
        return []
    better = f"profile {profile.name} leaves the {card.name} unused"
    return [Difference(what=better, effect=f"many times slower than {nearest_profile(report, devices)}")]


def _system_difference(profile: Profile, report: HardwareReport) -> list[Difference]:
    made_for, found = profile.machine.system, report.platform.system
    if made_for is None or made_for == found:
        return []
    slower, safe = "a little slower than it could be here", "what is unsafe here is left to the planner"
    what = f"profile {profile.name} is made for {made_for.capitalize()}, this is {found}"
    return [Difference(what=what, effect=slower if made_for == "windows" else safe)]


def _vram_difference(profile: Profile, report: HardwareReport, devices: Sequence[int]) -> list[Difference]:
    made_for = profile.machine.vram_gib
    total = next((card.vram_total_bytes for card in report.cards(devices)), None)
    if made_for is None or total is None or nearest_size(profile, total):
        return []
    what = f"profile {profile.name} is made for {made_for:g} GiB of VRAM, this card has {total / GIB:.0f}"
    near = nearest_profile(report, devices)
    if total < made_for * GIB:
        return [Difference(what=what, effect=f"it may not fit; {near} is made for this card")]
    return [Difference(what=what, effect=f"it fits easily; {near} makes more of this card")]


def nearest_size(profile: Profile, total_bytes: int) -> bool:
    """Whether a card's memory is of the profile's class: enough, and less than the next size up."""
    made_for = (profile.machine.vram_gib or 0) * GIB
    sizes = sorted({load_profile(name).machine.vram_gib or 0 for name in profile_names()})
    larger = [size for size in sizes if size * GIB > made_for]
    return total_bytes >= NEAR_ENOUGH * made_for and (not larger or total_bytes < NEAR_ENOUGH * larger[0] * GIB)


def nearest_profile(report: HardwareReport, devices: Sequence[int] = FIRST_CARD) -> str:
    """The profile made for a machine like this: its system, and the largest card that is not larger than its own."""
    card = next(iter(report.cards(devices)), None)
    if card is None:
        return "cpu"
    system = "windows" if report.is_windows else "linux"
    total = card.vram_total_bytes or 0
    profiles = [load_profile(name) for name in profile_names()]
    mine = sorted((p.machine.vram_gib or 0, p.name) for p in profiles if p.machine.system == system)
    return next((name for size, name in reversed(mine) if total >= NEAR_ENOUGH * size * GIB), mine[0][1])
