import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from qlora_run.probe import system
from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.sources import Sources

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"


def linux(root: Path, env: dict[str, str] | None = None, **files: str) -> Sources:
    """A Linux with these files; ``__`` in a name stands for a slash, ``_dot_`` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Sources(system="linux", root=root, env=env or {})


def ubuntu(root: Path, env: dict[str, str] | None = None, kernel: str = "6.8.0-88-generic", **files: str) -> Sources:
    release = 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n'
    more = {"etc__os-release": release, "proc__sys__kernel__osrelease": kernel + "\n", "proc__1__cgroup": "0::/\n"}
    return linux(root, env, **more, **files)


def test_linux_platform(tmp_path: Path) -> None:
    notes = Notes()
    found = system.platform(ubuntu(tmp_path), notes)
    assert (found.system, found.release, found.build) == ("linux", "Ubuntu 24.04.3 LTS", "6.8.0-88-generic")
    assert (found.wsl, found.container) == (False, False)
    assert found.python == sys.version.split()[0]
    assert "platform.release" not in notes.reasons


@pytest.mark.parametrize("kernel", ["6.6.87.2-microsoft-standard-WSL2", "4.4.0-19041-Microsoft"])
def test_wsl(tmp_path: Path, kernel: str) -> None:
    assert system.platform(ubuntu(tmp_path, kernel=kernel), Notes()).wsl


@pytest.mark.parametrize(
    ("env", "files"),
    [
        ({}, {"_dot_dockerenv": ""}),
        ({}, {"run___dot_containerenv": ""}),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, {}),
        ({"container": "podman"}, {}),
    ],
)
def test_containers(tmp_path: Path, env: dict[str, str], files: dict[str, str]) -> None:
    assert system.platform(ubuntu(tmp_path, env, **files), Notes()).container is True


def test_a_container_shows_in_its_control_group(tmp_path: Path) -> None:
    sources = ubuntu(tmp_path)
    (tmp_path / "proc/1/cgroup").write_text("4:memory:/docker/5f3a\n", encoding="utf-8")
    assert system.platform(sources, Notes()).container is True


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ((10, 0, 22000, 1), "11"),
        ((10, 0, 19045, 1), "10"),
        ((10, 0, 20348, 3), "server 10.0"),
        ((6, 3, 9600, 1), "6.3"),
    ],
)
def test_windows_release(version: tuple[int, int, int, int], name: str) -> None:
    assert system.windows_release(*version) == name


def test_windows_platform() -> None:
    version = SimpleNamespace(major=10, minor=0, build=26100, product_type=1)
    sources = Sources(
        system="windows",
        env={"PROCESSOR_ARCHITECTURE": "AMD64"},
        windows_version=lambda: version,
        machine=lambda env: env["PROCESSOR_ARCHITECTURE"],
    )
    notes = Notes()
    found = system.platform(sources, notes)
    assert (found.release, found.build, found.machine) == ("11", "26100", "AMD64")
    assert found.container is None
    assert "platform.container" in notes.reasons


def test_macos_platform() -> None:
    values = {"kern.osproductversion": "15.6.1", "kern.osversion": "24G90", "machdep.cpu.brand_string": "Apple M3"}
    sources = Sources(system="macos", sysctl=values.__getitem__)
    found = system.platform(sources, Notes())
    assert (found.release, found.build) == ("15.6.1", "24G90")
    assert system.cpu_name(sources) == "Apple M3"


def test_no_console(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    notes = Notes()
    assert system.platform(Sources(), notes).console_encoding is None
    assert notes.reasons["platform.console_encoding"] == "there is no console"


def test_distribution_without_a_name() -> None:
    with pytest.raises(Unknowable, match="PRETTY_NAME"):
        system.distribution("NAME=Busybox\n")


def test_linux_cpu() -> None:
    assert system.linux_cpu("processor\t: 0\nmodel name\t: AMD Ryzen 7 5700X\nmodel\t\t: 33\n") == "AMD Ryzen 7 5700X"
    with pytest.raises(Unknowable, match="no model name"):
        system.linux_cpu("processor\t: 0\nCPU part\t: 0xd0c\n")


def test_windows_cpu() -> None:
    class Key:
        def __enter__(self) -> "Key":
            return self

        def __exit__(self, *_: object) -> None:
            pass

    winreg = SimpleNamespace(
        HKEY_LOCAL_MACHINE=0, OpenKey=lambda root, name: Key(), QueryValueEx=lambda key, name: (f" {name} ", 1)
    )
    assert system.cpu_name(Sources(system="windows", load_winreg=lambda: winreg)) == "ProcessorNameString"


def grouped(root: Path, limit_bytes: int, used_bytes: int, cpu: str = "max 100000") -> Sources:
    own = {"memory.max": str(limit_bytes), "memory.current": str(used_bytes), "cpu.max": cpu}
    groups = {f"sys__fs__cgroup__{name}": text for name, text in own.items()}
    return linux(root, None, proc__self__cgroup="0::/\n", proc__self__mountinfo=V2_MOUNT, **groups)


def test_a_cgroup_limit_counts_as_the_total(tmp_path: Path) -> None:
    found = system.memory(grouped(tmp_path, limit_bytes=9 * 2**20, used_bytes=2**20), Notes())
    assert (found.ram_total_bytes, found.cgroup_limit_bytes) == (9 * 2**20, 9 * 2**20)
    assert found.ram_available_bytes == 8 * 2**20


def test_a_limit_above_the_machine_is_none(tmp_path: Path) -> None:
    found = system.memory(grouped(tmp_path, limit_bytes=2**55, used_bytes=0), Notes())
    assert found.cgroup_limit_bytes is None
    assert found.ram_total_bytes == psutil.virtual_memory().total


def test_a_limit_serves_when_the_total_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: 1 / 0)
    found = system.memory(grouped(tmp_path, limit_bytes=500, used_bytes=100), Notes())
    assert (found.ram_total_bytes, found.ram_available_bytes) == (500, 400)


def test_logical_cores_respect_affinity_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_affinity", lambda: 8)
    assert system.logical_cores(linux(tmp_path), Notes()) == 8
    assert system.logical_cores(grouped(tmp_path, 2**55, 0, cpu="250000 100000"), Notes()) == 3
    assert system.logical_cores(grouped(tmp_path, 2**55, 0, cpu="20000 100000"), Notes()) == 1
    assert system.logical_cores(grouped(tmp_path, 2**55, 0, cpu="6400000 100000"), Notes()) == 8


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, Path("/a")),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/b"}, Path("/old")),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, Path("/b/hub")),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "/c"}, Path("/c/huggingface/hub")),
        ({}, Path.home() / ".cache/huggingface/hub"),
        ({"HF_HOME": "~/models"}, Path.home() / "models/hub"),
    ],
)
def test_hub_cache(env: dict[str, str], folder: Path) -> None:
    assert system.hub_cache(env) == folder


def test_free_bytes_goes_by_the_nearest_folder_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> SimpleNamespace:
        asked.append(place)
        return SimpleNamespace(free=7)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert system.free_bytes(tmp_path / "not" / "yet" / "there") == 7
    assert system.free_bytes(tmp_path) == 7
    assert asked == [tmp_path, tmp_path]


def test_disk_of_this_machine(tmp_path: Path) -> None:
    notes = Notes()
    found = system.disk(Sources(env={}), notes, tmp_path / "new", tmp_path)
    assert found.output_free_bytes is not None
    assert found.output_free_bytes > 0
    assert notes.reasons == {}
