"""Operating system, processor, main memory and disks."""

import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from qlora_profiles.hardware import Disk, Memory, Platform
from qlora_run.probe import cgroup
from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.sources import Sources

_FIRST_WINDOWS_11_BUILD = 22000
_CPU_KEY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"
_CONTAINER_FILES = (".dockerenv", "run/.containerenv")
_CONTAINER_VARIABLES = ("KUBERNETES_SERVICE_HOST", "container")
_CONTAINER_GROUPS = re.compile(r"docker|kubepods|containerd|libpod|lxc")


def platform(sources: Sources, notes: Notes) -> Platform:
    """The operating system and Python."""
    release, build = notes.ask(lambda: _release(sources), "platform.release", "platform.build") or (None, None)
    return Platform(
        system=sources.system,
        release=release,
        build=build,
        machine=notes.ask(lambda: sources.machine(sources.env), "platform.machine"),
        wsl=bool(notes.ask(lambda: _is_wsl(sources), "platform.wsl")),
        container=notes.ask(lambda: _in_container(sources), "platform.container"),
        python=".".join(map(str, sys.version_info[:3])),
        console_encoding=notes.ask(_console_encoding, "platform.console_encoding"),
    )


def _release(sources: Sources) -> tuple[str, str]:
    """Name and build: a distribution and its kernel, ``"11"`` and ``"26100"``, macOS's version and its kernel."""
    if sources.system == "windows":
        version = sources.windows_version()
        return windows_release(version.major, version.minor, version.build, version.product_type), str(version.build)
    if sources.system == "macos":
        return sources.sysctl("kern.osproductversion"), sources.sysctl("kern.osversion")
    return distribution(sources.text("etc/os-release")), sources.text("proc/sys/kernel/osrelease").strip()


def windows_release(major: int, minor: int, build: int, product_type: int) -> str:
    """The name people know: Windows 11 still calls itself 10.0, and only its build tells."""
    if product_type != 1:
        return f"server {major}.{minor}"
    if (major, minor) != (10, 0):
        return f"{major}.{minor}"
    return "11" if build >= _FIRST_WINDOWS_11_BUILD else "10"


def distribution(os_release: str) -> str:
    """The name for people in the text of ``/etc/os-release``. Raises Unknowable."""
    match = re.search(r"""^PRETTY_NAME=["']?([^"'\n]+)""", os_release, re.MULTILINE)
    if not match:
        raise Unknowable("etc/os-release has no PRETTY_NAME")
    return match[1]


def _is_wsl(sources: Sources) -> bool:
    if sources.system != "linux":
        return False
    return "microsoft" in sources.text("proc/sys/kernel/osrelease").lower()


def _in_container(sources: Sources) -> bool:
    if sources.system != "linux":
        raise Unknowable("containers are looked for on Linux only")
    if any((sources.root / name).exists() for name in _CONTAINER_FILES):
        return True
    if any(sources.env.get(name) for name in _CONTAINER_VARIABLES):
        return True
    return bool(_CONTAINER_GROUPS.search(sources.text("proc/1/cgroup")))


def _console_encoding() -> str:
    encoding = getattr(sys.stdout, "encoding", None)
    if not encoding:
        raise Unknowable("there is no console")
    return str(encoding)


def cpu_name(sources: Sources) -> str:
    """The processor as its maker calls it. Raises Unknowable, OSError."""
    if sources.system == "windows":
        return _windows_cpu(sources)
    if sources.system == "macos":
        return sources.sysctl("machdep.cpu.brand_string")
    return linux_cpu(sources.text("proc/cpuinfo"))


def linux_cpu(cpuinfo: str) -> str:
    """The processor's name in the text of ``/proc/cpuinfo``. Raises Unknowable, as on most Arm machines."""
    match = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    if not match:
        raise Unknowable("proc/cpuinfo has no model name")
    return match[1].strip()


def _windows_cpu(sources: Sources) -> str:
    winreg = sources.load_winreg()
    with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _CPU_KEY) as key:
        return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()


def physical_cores() -> int:
    """Cores of the machine, limits not counted. Raises Unknowable."""
    import psutil

    count = psutil.cpu_count(logical=False)
    if not count:
        raise Unknowable("the operating system does not tell")
    return count


def logical_cores(sources: Sources, notes: Notes) -> int | None:
    """Threads that may run at once: affinity and a control group's quota respected, a part of one counts whole."""
    allowed = notes.ask(_affinity, "cpu_cores_logical")
    quota = None
    if sources.system == "linux":
        quota = notes.ask(lambda: cgroup.cpu_quota(sources.root), "cpu_cores_logical")
    return min((math.ceil(count) for count in (allowed, quota) if count), default=None)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    import psutil

    process = psutil.Process()
    if hasattr(process, "cpu_affinity"):
        return len(process.cpu_affinity() or ())
    count = os.cpu_count()
    if not count:
        raise Unknowable("the operating system does not tell")
    return count


def memory(sources: Sources, notes: Notes) -> Memory:
    """Main memory in bytes; the tightest control group's limit counts as the total."""
    total, available = notes.ask(_ram, "memory.ram_total_bytes", "memory.ram_available_bytes") or (None, None)
    swap = notes.ask(_swap, "memory.swap_total_bytes")
    limit = None
    if sources.system == "linux":
        limit = notes.ask(lambda: cgroup.memory_limit(sources.root), "memory.cgroup_limit_bytes")
    if limit is None or (total is not None and limit.limit_bytes >= total):
        return Memory(ram_total_bytes=total, ram_available_bytes=available, swap_total_bytes=swap)
    return Memory(
        ram_total_bytes=limit.limit_bytes,
        ram_available_bytes=limit.left_bytes if available is None else min(available, limit.left_bytes),
        cgroup_limit_bytes=limit.limit_bytes,
        swap_total_bytes=swap,
    )


def _ram() -> tuple[int, int]:
    import psutil

    ram = psutil.virtual_memory()
    return int(ram.total), int(ram.available)


def _swap() -> int:
    import psutil

    return int(psutil.swap_memory().total)


def disk(sources: Sources, notes: Notes, output: Path | None, cache: Path | None) -> Disk:
    """Free bytes where the run (default: the current folder) and the downloaded models go."""
    return Disk(
        output_free_bytes=notes.ask(lambda: free_bytes(output or Path()), "disk.output_free_bytes"),
        cache_free_bytes=notes.ask(lambda: free_bytes(cache or hub_cache(sources.env)), "disk.cache_free_bytes"),
    )


def hub_cache(env: Mapping[str, str]) -> Path:
    """Where downloaded models go, by the hub's own environment variables. Raises RuntimeError without a home."""
    if folder := env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE"):
        return Path(folder).expanduser()
    if home := env.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(env.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of the nearest folder that exists. Raises Unknowable, OSError."""
    whole = folder.expanduser().absolute()
    for place in (whole, *whole.parents):
        if place.exists():
            return shutil.disk_usage(place).free
    raise Unknowable(f"no part of {whole} exists")
