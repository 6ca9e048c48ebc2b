"""What a machine is: the frozen report that the probe fills in and every plan stands on.

What could not be found out is ``None``, and ``unknown`` says why, keyed by the dotted name of the field
(``"gpus.0.driver"``). Nothing here is computed from another field, so a report can be written by hand.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct, field

from qlora_profiles.versions import version_numbers

Vendor = Literal["nvidia", "amd", "intel", "apple"]
TorchBuild = Literal["cpu", "cuda", "rocm", "xpu", "mps"]


class GpuProcess(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A process that holds memory of a card."""

    pid: int
    name: str | None = None
    vram_bytes: int | None = None


class Gpu(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One card, in the order in which CUDA would number it (``CUDA_VISIBLE_DEVICES`` respected).

    ``capability`` is the CUDA compute capability as (major, minor); ``None`` for other vendors.
    """

    name: str
    vendor: Vendor = "nvidia"
    index: int = 0
    uuid: str | None = None
    vram_total_bytes: int | None = None
    vram_free_bytes: int | None = None
    capability: tuple[int, int] | None = None
    driver: str | None = None
    drives_display: bool | None = None
    driver_model: Literal["wddm", "tcc", "mcdm"] | None = None
    mig: bool | None = None
    temperature_celsius: int | None = None
    processes: tuple[GpuProcess, ...] = ()


class Platform(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operating system and the Python that runs on it."""

    system: Literal["windows", "linux", "macos", "other"]
    release: str | None = None
    build: str | None = None
    machine: str | None = None
    wsl: bool = False
    container: bool | None = None
    python: str | None = None
    console_encoding: str | None = None


class Memory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Main memory as this process may use it; a cgroup limit counts as the total."""

    ram_total_bytes: int | None = None
    ram_available_bytes: int | None = None
    cgroup_limit_bytes: int | None = None
    swap_total_bytes: int | None = None


class Disk(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Free space where the run and the downloaded models go."""

    output_free_bytes: int | None = None
    cache_free_bytes: int | None = None


class Torch(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The installed torch, read from its files without importing it."""

    version: str | None = None
    build: TorchBuild | None = None
    cuda: str | None = None


class HardwareReport(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine at one moment. ``schema`` changes when a field changes its meaning."""

    schema: Literal[1] = 1
    name: str = "this machine"
    platform: Platform
    cpu_name: str | None = None
    cpu_cores_physical: int | None = None
    cpu_cores_logical: int | None = None
    memory: Memory = field(default_factory=Memory)
    disk: Disk = field(default_factory=Disk)
    gpus: tuple[Gpu, ...] = ()
    cuda_driver: str | None = None
    cuda_visible_devices: str | None = None
    torch: Torch = field(default_factory=Torch)
    packages: dict[str, str] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    @property
    def cuda_gpus(self) -> tuple[Gpu, ...]:
        """The cards that the installed torch can compute on; empty with a CPU build."""
        if self.torch.build != "cuda":
            return ()
        return tuple(gpu for gpu in self.gpus if gpu.vendor == "nvidia")

    def cards(self, devices: Sequence[int]) -> tuple[Gpu, ...]:
        """The cards that CUDA numbers so, in the order of ``devices``; a number without a card is left out."""
        return tuple(self.cuda_gpus[number] for number in devices if number < len(self.cuda_gpus))

    @property
    def torch_version(self) -> tuple[int, ...] | None:
        """The installed torch's version as numbers: what its own files say, else the package's metadata."""
        return version_numbers(self.torch.version) if self.torch.version else self.version_of("torch")

    def version_of(self, package: str) -> tuple[int, ...] | None:
        """An installed package's version as numbers, ``None`` where it is not installed.

        ``package`` is in lower case with hyphens, as ``liger-kernel``.
        """
        names = {name.lower().replace("_", "-"): text for name, text in self.packages.items()}
        text = names.get(package) or (self.torch.version if package == "torch" else None)
        return None if text is None else version_numbers(text)

    def showing(self, devices: Sequence[int]) -> str | None:
        """The ``CUDA_VISIBLE_DEVICES`` with which a process sees these cards alone; ``None`` where it does anyway."""
        cards = self.cards(devices)
        if not cards or cards == self.cuda_gpus:
            return None
        uuids = [card.uuid for card in cards if card.uuid]
        if len(uuids) == len(cards):
            return ",".join(uuids)
        listed = (self.cuda_visible_devices or "").split(",")
        names = [name.strip() for name in listed] if len(listed) >= len(self.cuda_gpus) else None
        return ",".join(names[number] if names else str(number) for number in devices)

    @property
    def is_windows(self) -> bool:
        """True on Windows itself; WSL is Linux here."""
        return self.platform.system == "windows"
