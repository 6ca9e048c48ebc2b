from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.othergpus import DetectedCard, detected_cards, other_gpus, pci_name, registry_card
from qlora_run.probe.sources import Sources

PCI_IDS = """# list
1002  Advanced Micro Devices, Inc. [AMD/ATI]
\t744c  Navi 31 [Radeon RX 7900 XTX]
\t\t1002 0e3b  reference board
\t1636  Renoir
8086  Intel Corporation
\t744c  A network card
"""


def device(folder: Path, vendor: str, number: str, kind: str = "0x030000", **files: str) -> None:
    folder.mkdir(parents=True)
    for name, text in {"vendor": vendor, "device": number, "class": kind, **files}.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("vendor", "number", "name"),
    [
        (0x1002, 0x744C, "Advanced Micro Devices, Inc. [AMD/ATI] Navi 31 [Radeon RX 7900 XTX]"),
        (0x1002, 0x1636, "Advanced Micro Devices, Inc. [AMD/ATI] Renoir"),
        (0x8086, 0x1636, None),
        (0x10DE, 0x2504, None),
    ],
)
def test_pci_name(vendor: int, number: int, name: str | None) -> None:
    assert pci_name(PCI_IDS, vendor, number) == name


def test_linux_lists_display_controllers_of_known_vendors(tmp_path: Path) -> None:
    bus = tmp_path / "sys/bus/pci/devices"
    memory = {"mem_info_vram_total": "17163091968", "mem_info_vram_used": "163091968"}
    device(bus / "03", "0x1002", "0x744c", **memory)
    device(bus / "00", "0x8086", "0x4680", "0x038000")
    device(bus / "01", "0x10de", "0x2504", "0x030200")
    device(bus / "02", "0x8086", "0x15f3", "0x020000")  # a network card
    device(bus / "04", "0x1a03", "0x2000")  # a server's console chip
    device(tmp_path / "sys/class/drm/card1/device", "0x1002", "0x1636", product_name="Radeon Pro W7900")
    device(tmp_path / "sys/class/drm/card1-DP-1/device", "0x1002", "0x9999")
    names = tmp_path / "usr/share/misc/pci.ids"
    names.parent.mkdir(parents=True)
    names.write_text(PCI_IDS, encoding="utf-8")
    version = tmp_path / "sys/module/amdgpu/version"
    version.parent.mkdir(parents=True)
    version.write_text("6.14.14\n", encoding="utf-8")
    assert detected_cards(Sources(system="linux", root=tmp_path)) == [
        DetectedCard("intel", "Intel graphics (PCI device 4680)"),
        DetectedCard("nvidia", "NVIDIA card (PCI device 2504)"),
        DetectedCard(
            "amd",
            "Advanced Micro Devices, Inc. [AMD/ATI] Navi 31 [Radeon RX 7900 XTX]",
            17163091968,
            17000000000,
            "6.14.14",
        ),
        DetectedCard("amd", "Radeon Pro W7900", driver="6.14.14"),
    ]


def test_linux_without_sys_cannot_know(tmp_path: Path) -> None:
    with pytest.raises(Unknowable, match="lists no devices"):
        detected_cards(Sources(system="linux", root=tmp_path))


@pytest.mark.parametrize("files", [{"vendor": "garbage"}, {"class": "0x"}, {"vendor": ""}])
def test_odd_sys_files_are_passed_over(tmp_path: Path, files: dict[str, str]) -> None:
    device(tmp_path / "sys/bus/pci/devices/00", "0x8086", "0x1")
    for name, text in files.items():
        (tmp_path / "sys/bus/pci/devices/00" / name).write_text(text, encoding="utf-8")
    assert detected_cards(Sources(system="linux", root=tmp_path)) == []


@pytest.mark.parametrize(
    ("values", "card"),
    [
        (
            {
                "MatchingDeviceId": r"PCI\VEN_1002&DEV_744C",
                "DriverDesc": "AMD Radeon RX 7900 XTX",
                "DriverVersion": "32.0.21025.1024",
                "HardwareInformation.qwMemorySize": 25753026560,
            },
            DetectedCard("amd", "AMD Radeon RX 7900 XTX", 25753026560, driver="32.0.21025.1024"),
        ),
        (
            {"MatchingDeviceId": r"pci\ven_8086&dev_46a6", "HardwareInformation.qwMemorySize": 134217728},
            DetectedCard("intel", "Intel graphics"),  # an integrated chip's number is no memory of its own
        ),
        ({"MatchingDeviceId": r"root\basicdisplay", "DriverDesc": "Remote Display Adapter"}, None),
        ({}, None),
    ],
)
def test_registry_card(values: Mapping[str, Any], card: DetectedCard | None) -> None:
    assert registry_card(values) == card


class Key(dict[str, Any]):
    """A registry key: subkeys are nested keys, everything else is a value."""

    def __enter__(self) -> "Key":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def part(self, keys: bool) -> list[tuple[str, Any]]:
        return [(name, inner) for name, inner in self.items() if isinstance(inner, Key) == keys]


def registry(adapters: Key) -> SimpleNamespace:
    return SimpleNamespace(
        HKEY_LOCAL_MACHINE=Key({"adapters": adapters}),
        OpenKey=lambda key, name: key.get(name, adapters),
        QueryInfoKey=lambda key: (len(key.part(True)), len(key.part(False)), 0),
        EnumKey=lambda key, index: key.part(True)[index][0],
        EnumValue=lambda key, index: (*key.part(False)[index], 1),
    )


def test_windows_reads_every_adapter_once() -> None:
    card = {"MatchingDeviceId": r"PCI\VEN_1002&DEV_744C", "DriverDesc": "AMD Radeon RX 7900 XTX"}
    adapters = Key({"Class": "Display", "0000": Key(card), "0001": Key(card), "Properties": Key(card)})
    windows = Sources(system="windows", load_winreg=lambda: registry(adapters))
    assert detected_cards(windows) == [DetectedCard("amd", "AMD Radeon RX 7900 XTX")]


def test_apple_silicon_is_named_by_its_chip() -> None:
    mac = Sources(system="macos", machine=lambda env: "arm64", sysctl=lambda name: "Apple M3")
    assert detected_cards(mac) == [DetectedCard("apple", "Apple M3")]


def test_apple_silicon_without_a_name() -> None:
    def refuse(name: str) -> str:
        raise OSError(2, name)

    mac = Sources(system="macos", machine=lambda env: "arm64", sysctl=refuse)
    assert detected_cards(mac) == [DetectedCard("apple", "Apple silicon")]


def test_intel_macs_and_other_systems_are_not_looked_at() -> None:
    with pytest.raises(Unknowable, match="Apple silicon"):
        detected_cards(Sources(system="macos", machine=lambda env: "x86_64"))
    with pytest.raises(Unknowable, match="Linux, Windows and macOS"):
        detected_cards(Sources(system="other"))


def test_other_gpus_follow_the_first_ones_and_are_numbered_per_vendor() -> None:
    cards = [
        DetectedCard("amd", "A"),
        DetectedCard("nvidia", "N"),
        DetectedCard("intel", "I"),
        DetectedCard("amd", "B", 8, 6, "6.1"),
    ]
    notes = Notes()
    gpus = other_gpus(cards, notes, first=2)
    assert [(gpu.name, gpu.vendor, gpu.index) for gpu in gpus] == [("A", "amd", 0), ("I", "intel", 0), ("B", "amd", 1)]
    assert (gpus[2].vram_total_bytes, gpus[2].vram_free_bytes, gpus[2].driver) == (8, 6, "6.1")
    assert list(notes.reasons) == ["gpus.2", "gpus.3", "gpus.4"]
