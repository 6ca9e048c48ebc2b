"""Cards that NVML does not tell of: AMD, Intel and Apple ones, and NVIDIA cards whose driver does not answer."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_profiles.hardware import Gpu, Vendor
from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.sources import Sources

_VENDORS: dict[int, Vendor] = {0x10DE: "nvidia", 0x1002: "amd", 0x8086: "intel"}
_PLAIN_NAMES = {"nvidia": "NVIDIA card", "amd": "AMD graphics", "intel": "Intel graphics"}
_PCI_NAME_FILES = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")
_DISPLAY_CLASS = 0x03  # the PCI base class of display controllers
# The device class of display adapters in the Windows registry.
_ADAPTERS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"


@dataclass(frozen=True)
class DetectedCard:
    """A card that the operating system lists."""

    vendor: Vendor
    name: str
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    driver: str | None = None


def detected_cards(sources: Sources) -> list[DetectedCard]:
    """The cards that the operating system lists, NVIDIA's too. Raises Unknowable, OSError."""
    readers = {"linux": linux_cards, "windows": windows_cards, "macos": apple_cards}
    reader = readers.get(sources.system)
    if reader is None:
        raise Unknowable("cards are looked for on Linux, Windows and macOS only")
    return reader(sources)


def other_gpus(cards: list[DetectedCard], notes: Notes, first: int) -> tuple[Gpu, ...]:
    """Report entries for the cards without NVML, which follow ``first`` others and are numbered per vendor."""
    gpus: list[Gpu] = []
    for card in (card for card in cards if card.vendor != "nvidia"):
        notes.add(f"gpus.{first + len(gpus)}", f"{card.vendor}: only what the operating system lists is read")
        gpus.append(
            Gpu(
                name=card.name,
                vendor=card.vendor,
                index=sum(gpu.vendor == card.vendor for gpu in gpus),
                vram_total_bytes=card.vram_total_bytes,
                vram_free_bytes=card.vram_free_bytes,
                driver=card.driver,
            )
        )
    return tuple(gpus)


def linux_cards(sources: Sources) -> list[DetectedCard]:
    """Display and 3D controllers from ``/sys``: of the PCI bus, and of drm for cards on other buses."""
    vendors = {folder: _VENDORS.get(_number(folder / "vendor") or 0) for folder in _device_folders(sources.root)}
    names = _pci_names(sources.root) if any(vendors.values()) else ""
    return [_linux_card(folder, vendor, names, sources.root) for folder, vendor in vendors.items() if vendor]


def _device_folders(root: Path) -> list[Path]:
    bus, drm = root / "sys/bus/pci/devices", root / "sys/class/drm"
    if not bus.exists() and not drm.exists():
        raise Unknowable(f"{root / 'sys'} lists no devices")
    on_bus = [one for one in sorted(bus.glob("*")) if (_number(one / "class") or 0) >> 16 == _DISPLAY_CLASS]
    drawing = [card / "device" for card in sorted(drm.glob("card*")) if card.name[4:].isdigit()]
    return list(dict.fromkeys(folder.resolve() for folder in on_bus + drawing))


def _linux_card(folder: Path, vendor: Vendor, names: str, root: Path) -> DetectedCard:
    device = _number(folder / "device") or 0
    total, used = (_decimal(folder / f"mem_info_vram_{what}") for what in ("total", "used"))
    listed = _text(folder / "product_name") or pci_name(names, _number(folder / "vendor") or 0, device)
    return DetectedCard(
        vendor=vendor,
        name=listed or f"{_PLAIN_NAMES[vendor]} (PCI device {device:04x})",
        vram_total_bytes=total,
        vram_free_bytes=None if total is None or used is None else total - used,
        driver=_text(root / "sys/module/amdgpu/version") if vendor == "amd" else None,
    )


def pci_name(names: str, vendor: int, device: int) -> str | None:
    """The device's name in the text of the public list ``pci.ids``; ``None`` when it is not listed."""
    block = re.search(rf"^{vendor:04x}  (.+)\n((?:[\t#].*\n|\n)*)", names, re.MULTILINE)
    line = re.search(rf"^\t{device:04x}  (.+)$", block[2], re.MULTILINE) if block else None
    return f"{block[1]} {line[1]}" if block and line else None


def _pci_names(root: Path) -> str:
    return next((text for name in _PCI_NAME_FILES if (text := _text(root / name))), "")


def windows_cards(sources: Sources) -> list[DetectedCard]:
    """Display adapters from the registry; one that was taken out may still be listed."""
    cards = (registry_card(values) for values in _adapter_keys(sources.load_winreg()))
    return list(dict.fromkeys(card for card in cards if card))


def registry_card(values: Mapping[str, Any]) -> DetectedCard | None:
    """The card that one adapter key describes; ``None`` for virtual adapters."""
    vendor = re.search(r"ven_([0-9a-f]{4})", str(values.get("MatchingDeviceId", "")).lower())
    known = _VENDORS.get(int(vendor[1], 16)) if vendor else None
    if known is None:
        return None
    size = values.get("HardwareInformation.qwMemorySize")
    return DetectedCard(
        vendor=known,
        name=str(values.get("DriverDesc") or _PLAIN_NAMES[known]),
        vram_total_bytes=size if isinstance(size, int) and known != "intel" else None,
        driver=str(values["DriverVersion"]) if "DriverVersion" in values else None,
    )


def _adapter_keys(winreg: Any) -> Iterator[dict[str, Any]]:
    """The values of every adapter's key (``0000``, ``0001``, ...)."""
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _ADAPTERS) as adapters:
        for index in range(winreg.QueryInfoKey(adapters)[0]):
            name = winreg.EnumKey(adapters, index)
            if name.isdigit():
                with winreg.OpenKey(adapters, name) as key:
                    rows = (winreg.EnumValue(key, place) for place in range(winreg.QueryInfoKey(key)[1]))
                    yield {row[0]: row[1] for row in rows}


def apple_cards(sources: Sources) -> list[DetectedCard]:
    """The graphics part of an Apple chip, which shares the main memory. Raises Unknowable on Intel Macs."""
    if sources.machine(sources.env) != "arm64":
        raise Unknowable("on macOS only Apple silicon is looked for")
    try:
        name = sources.sysctl("machdep.cpu.brand_string")
    except (OSError, AttributeError):
        name = "Apple silicon"
    return [DetectedCard(vendor="apple", name=name)]


def _text(path: Path) -> str | None:
    """A short file of ``/sys``; ``None`` where the driver has none or refuses."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    """A number that ``/sys`` writes as ``0x10de``."""
    text = _text(path) or ""
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", text) else None


def _decimal(path: Path) -> int | None:
    text = _text(path) or ""
    return int(text) if text.isdigit() else None
