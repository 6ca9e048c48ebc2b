"""The memory and processor limits that a container or a service sets, for both versions of Linux control groups."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Version 1 writes "no limit" as the largest page-aligned signed number.
_NO_LIMIT_BYTES = 2**60

# limit file, usage file, key of the reclaimable page cache in memory.stat; version 2 first
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True)
class Mount:
    """One mounted hierarchy: ``controllers`` is empty for version 2; ``root`` is the group seen at ``point``."""

    controllers: frozenset[str]
    root: str
    point: str


@dataclass(frozen=True)
class MemoryLimit:
    """The tightest limit and what is left below every limit, in bytes."""

    limit_bytes: int
    left_bytes: int


def parse_membership(text: str) -> dict[str, str]:
    """The group's path per controller from ``/proc/self/cgroup``; version 2 stands under ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            paths |= dict.fromkeys(parts[1].split(","), parts[2])
    return paths


def parse_mounts(text: str) -> list[Mount]:
    """The mounted hierarchies from ``/proc/self/mountinfo``."""
    mounts = []
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = frozenset(kind[2].split(",")) if kind[0] == "cgroup" else frozenset[str]()
        mounts.append(Mount(controllers, root=fields[3], point=fields[4]))
    return mounts


def parse_limit(text: str) -> int | None:
    """Bytes from a limit file; ``None`` means no limit. Raises ValueError."""
    value = text.strip()
    if value == "max":
        return None
    return None if int(value) >= _NO_LIMIT_BYTES else int(value)


def parse_stat(text: str, key: str) -> int:
    """One number of ``memory.stat``; 0 where it is not listed."""
    match = re.search(rf"^{key} (\d+)$", text, re.MULTILINE)
    return int(match[1]) if match else 0


def parse_cpus(quota: str, period: str) -> float | None:
    """Processors' worth of time from quota and period in microseconds; ``None`` means no quota. Raises ValueError."""
    if quota.strip() in ("max", "-1"):
        return None
    return int(quota) / int(period)


def group_folders(membership: Mapping[str, str], mounts: list[Mount], controller: str) -> list[str]:
    """The folders whose limits bind this process, own group first, up to the top of the mounted hierarchy."""
    for key in (controller, ""):
        mount = next((m for m in mounts if (key in m.controllers if key else not m.controllers)), None)
        if mount and key in membership:
            return _climb(mount, membership[key])
    return []


def _climb(mount: Mount, path: str) -> list[str]:
    """Folders from the group up to the mount point.

    Without a namespace of its own a container sees the host's path, but only its own part of the tree is mounted.
    """
    below = path.removeprefix(mount.root) if mount.root != "/" else path
    names = [name for name in below.split("/") if name]
    if ".." in names:  # the group lies outside what is mounted here
        names = []
    return ["/".join((mount.point.rstrip("/"), *names[:depth])) for depth in range(len(names), -1, -1)]


def memory_limit(root: Path) -> MemoryLimit | None:
    """The memory limits of this process; ``None`` when there are none.

    Raises:
        OSError: ``/proc`` does not tell the groups.
        ValueError: a limit file holds no number.
    """
    limits = [found for folder in _folders(root, "memory") if (found := _memory_at(folder))]
    if not limits:
        return None
    return MemoryLimit(min(one.limit_bytes for one in limits), min(one.left_bytes for one in limits))


def cpu_quota(root: Path) -> float | None:
    """Processors' worth of time that this process may use; ``None`` without a quota. Raises as ``memory_limit``."""
    quotas = [found for folder in _folders(root, "cpu") if (found := _cpus_at(folder))]
    return min(quotas, default=None)


def _folders(root: Path, controller: str) -> Iterator[Path]:
    membership = parse_membership((root / "proc/self/cgroup").read_text(encoding="utf-8"))
    mounts = parse_mounts((root / "proc/self/mountinfo").read_text(encoding="utf-8"))
    for folder in group_folders(membership, mounts, controller):
        yield root / folder.lstrip("/")


def _memory_at(folder: Path) -> MemoryLimit | None:
    for limit_file, usage_file, reclaimable in _MEMORY_FILES:
        limit = parse_limit(text) if (text := _text(folder / limit_file)) else None
        if limit is not None:
            used = int(_text(folder / usage_file) or 0) - parse_stat(_text(folder / "memory.stat"), reclaimable)
            return MemoryLimit(limit, max(0, limit - max(0, used)))
    return None


def _cpus_at(folder: Path) -> float | None:
    both = _text(folder / "cpu.max").split()
    if len(both) == 2:
        return parse_cpus(both[0], both[1])
    quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
    return parse_cpus(quota, period) if quota and period else None


def _text(path: Path) -> str:
    """The file's text; empty where the version or the level has no such file (the top group has no limit)."""
    return path.read_text(encoding="utf-8") if path.exists() else ""
