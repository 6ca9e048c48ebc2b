from pathlib import Path

import pytest

from qlora_run.probe.cgroup import (
    MemoryLimit,
    Mount,
    cpu_quota,
    group_folders,
    memory_limit,
    parse_cpus,
    parse_limit,
    parse_membership,
    parse_mounts,
    parse_stat,
)

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
    "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
)
NO_LIMIT_V1 = "9223372036854771712\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_membership_of_both_versions() -> None:
    text = "4:cpu,cpuacct:/jobs/7\n2:memory:/\n1:name=systemd:/init.scope\n0::/user.slice/a:b\n"
    assert parse_membership(text) == {
        "cpu": "/jobs/7",
        "cpuacct": "/jobs/7",
        "memory": "/",
        "name=systemd": "/init.scope",
        "": "/user.slice/a:b",
    }


def test_mounts_of_both_versions_and_nothing_else() -> None:
    assert parse_mounts(V2_MOUNT + V1_MOUNTS + "cut short\n") == [
        Mount(frozenset(), "/", "/sys/fs/cgroup"),
        Mount(frozenset({"rw", "memory"}), "/", "/sys/fs/cgroup/memory"),
        Mount(frozenset({"rw", "cpu", "cpuacct"}), "/", "/sys/fs/cgroup/cpu,cpuacct"),
    ]


@pytest.mark.parametrize(
    ("text", "limit_bytes"), [("max\n", None), (NO_LIMIT_V1, None), ("8589934592\n", 8589934592), ("0", 0)]
)
def test_limit(text: str, limit_bytes: int | None) -> None:
    assert parse_limit(text) == limit_bytes


def test_stat_takes_the_line_of_that_very_name() -> None:
    assert parse_stat("total_inactive_file 7\ninactive_file 5\n", "inactive_file") == 5
    assert parse_stat("anon 3\n", "inactive_file") == 0


@pytest.mark.parametrize(
    ("quota", "period", "cpus"),
    [("max", "100000", None), ("-1\n", "100000\n", None), ("150000", "100000", 1.5)],
)
def test_cpus(quota: str, period: str, cpus: float | None) -> None:
    assert parse_cpus(quota, period) == cpus


@pytest.mark.parametrize(
    ("root", "path", "folders"),
    [
        ("/", "/a/b", ["/g/a/b", "/g/a", "/g"]),
        ("/", "/", ["/g"]),
        ("/docker/7", "/docker/7", ["/g"]),  # the host's path, seen without a namespace
        ("/docker/7", "/docker/7/sub", ["/g/sub", "/g"]),
        ("/", "/../other", ["/g"]),  # outside what is mounted
    ],
)
def test_folders_climb_to_the_mount(root: str, path: str, folders: list[str]) -> None:
    assert group_folders({"": path}, [Mount(frozenset(), root, "/g")], "memory") == folders


def test_a_controller_that_version_1_holds_is_not_looked_for_in_version_2() -> None:
    mounts = [Mount(frozenset(), "/", "/unified"), Mount(frozenset({"memory"}), "/", "/memory")]
    membership = {"memory": "/x", "": "/y"}
    assert group_folders(membership, mounts, "memory") == ["/memory/x", "/memory"]
    assert group_folders(membership, mounts, "cpu") == ["/unified/y", "/unified"]


def test_no_mounted_groups_mean_no_folders() -> None:
    assert group_folders({"": "/x"}, [], "memory") == []


def test_version_2_takes_the_tightest_level_and_counts_page_cache_as_free(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/box/job\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/box/memory.max": "4000\n",
            "sys/fs/cgroup/box/memory.current": "3500\n",
            "sys/fs/cgroup/box/memory.stat": "anon 500\ninactive_file 1000\n",
            "sys/fs/cgroup/box/job/memory.max": "6000\n",
            "sys/fs/cgroup/box/job/memory.current": "3000\n",
            "sys/fs/cgroup/box/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/box/job/cpu.max": "max 100000\n",
        },
    )
    assert memory_limit(root) == MemoryLimit(limit_bytes=4000, left_bytes=1500)
    assert cpu_quota(root) == 2.5


def test_version_1(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/job\n3:cpu,cpuacct:/job\n",
            "proc/self/mountinfo": V1_MOUNTS,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": NO_LIMIT_V1,
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "9000\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "2000\n",
            "sys/fs/cgroup/memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
        },
    )
    assert memory_limit(root) == MemoryLimit(limit_bytes=9000, left_bytes=7500)
    assert cpu_quota(root) == 0.5


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": "100\n",
            "sys/fs/cgroup/memory.current": "130\n",
        },
    )
    assert memory_limit(root) == MemoryLimit(limit_bytes=100, left_bytes=0)


def test_no_limits(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT})
    assert memory_limit(root) is None
    assert cpu_quota(root) is None


def test_a_limit_that_is_no_number_is_an_error_not_a_guess(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/memory.max": "plenty\n"}
    with pytest.raises(ValueError, match="plenty"):
        memory_limit(tree(tmp_path, files))
