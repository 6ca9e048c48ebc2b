import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from qlora_profiles.codec import from_json, to_json
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machines import load_machine, machine_names
from qlora_run.probe import probe
from qlora_run.probe.sources import Sources, load_nvml, machine
from qlora_run.probe.survey import survey

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate", "bitsandbytes", "numpy")
# Fields for which None is the answer: no limit, not set, not such a card, no toolkit in this build.
MAY_BE_NONE = {
    "memory.cgroup_limit_bytes",
    "cuda_visible_devices",
    "torch.cuda",
    "driver_model",
}


def child(*arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run this Python with the same import path."""
    inherited = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        encoding="utf-8",
        env=inherited | env,
        check=False,
        timeout=60,
    )


def empty_fields(value: Any, where: str = "") -> Iterator[str]:
    """Dotted names of the fields that are None."""
    if value is None:
        yield where
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in children:
        yield from empty_fields(inner, f"{where}.{key}" if where else str(key))


def unexplained(report: HardwareReport) -> list[str]:
    """Empty fields without a reason under their own name or under that of a group they are in."""

    def explained(field: str) -> bool:
        parts = field.split(".")
        names = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
        names.add(".".join(part for place, part in enumerate(parts) if place < 2 or not part.isdigit()))
        return bool(names & report.unknown.keys()) or field in MAY_BE_NONE or parts[-1] in MAY_BE_NONE

    return [field for field in empty_fields(msgspec.to_builtins(report)) if not explained(field)]


def assert_sound(report: HardwareReport) -> None:
    assert from_json(to_json(report), HardwareReport, "report") == report
    assert unexplained(report) == []
    assert all(reason.strip() == reason != "" for reason in report.unknown.values())


@pytest.mark.parametrize("name", machine_names())
def test_shipped_machines_explain_their_gaps_too(name: str) -> None:
    assert unexplained(load_machine(name)) == []


def test_this_machine(tmp_path: Path) -> None:
    report = probe(output=tmp_path / "run", cache=tmp_path)
    assert_sound(report)
    assert report.platform.python == sys.version.split()[0]
    assert report.packages["torch"] == metadata.version("torch")
    assert report.torch.version == metadata.version("torch")
    assert report.torch.build is not None
    assert report.cpu_cores_logical
    assert report.memory.ram_total_bytes
    assert report.disk.output_free_bytes


def test_torch_build_is_what_torch_says() -> None:
    told = child("-c", "import torch, json; print(json.dumps([torch.__version__, torch.version.cuda]))")
    version, cuda = json.loads(told.stdout)
    report = probe()
    assert report.torch.cuda == cuda
    assert version.startswith((report.torch.version or "").partition("+")[0])


def test_probing_loads_no_heavy_package() -> None:
    code = "import sys, json; from qlora_run.probe import probe; probe(); print(json.dumps(sorted(sys.modules)))"
    done = child("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint(HEAVY)
    assert "psutil" in loaded


def test_importing_the_probe_loads_no_probing_library() -> None:
    done = child("-c", "import sys; import qlora_run.probe; print('psutil' in sys.modules, 'pynvml' in sys.modules)")
    assert done.stdout.split() == ["False", "False"]


def test_the_module_prints_ascii_json_on_any_console() -> None:
    done = child("-m", "qlora_run.probe", PYTHONIOENCODING="gbk", CUDA_VISIBLE_DEVICES="\u663e\u5361 \u2713")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    report = from_json(done.stdout, HardwareReport, "stdout")
    assert report.platform.console_encoding == "gbk"
    assert report.cuda_visible_devices == "\u663e\u5361 \u2713"


def test_the_module_writes_a_file_that_loads_as_a_machine(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    done = child("-m", "qlora_run.probe", str(file))
    assert (done.returncode, done.stdout) == (0, "")
    assert load_machine(str(file)).packages == probe().packages


def test_the_module_cannot_write_there(tmp_path: Path) -> None:
    done = child("-m", "qlora_run.probe", str(tmp_path / "no" / "such" / "folder.json"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


def test_cuda_visible_devices_is_kept_as_it_is() -> None:
    assert probe(env={"CUDA_VISIBLE_DEVICES": "0,1"}).cuda_visible_devices == "0,1"
    assert probe(env={"CUDA_VISIBLE_DEVICES": ""}).cuda_visible_devices == ""
    assert probe(env={}).cuda_visible_devices is None


@pytest.mark.parametrize("system", ["linux", "windows", "macos", "other"])
def test_a_machine_that_tells_nothing(system: Any, tmp_path: Path) -> None:
    def refuse(*_: object) -> Any:
        raise PermissionError(13, "Permission denied", "somewhere")

    closed = Sources(
        system=system,
        env={},
        root=tmp_path,
        load_nvml=refuse,
        load_winreg=refuse,
        windows_version=refuse,
        machine=refuse,
        sysctl=refuse,
    )
    report = survey(closed)
    assert_sound(report)
    assert report.gpus == ()
    assert report.platform.release is None
    assert report.cpu_name is None
    assert report.unknown["platform.machine"] == "somewhere: Permission denied"


@pytest.mark.parametrize("broken", ["virtual_memory", "swap_memory", "cpu_count", "Process"])
@pytest.mark.parametrize("error", [psutil.AccessDenied(1), RuntimeError(), NotImplementedError("no\nway")], ids=repr)
def test_psutil_fails(broken: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise error

    monkeypatch.setattr(psutil, broken, fail)
    report = probe()
    assert_sound(report)
    lost = {
        "virtual_memory": report.memory.ram_available_bytes,
        "swap_memory": report.memory.swap_total_bytes,
        "cpu_count": report.cpu_cores_physical,
    }
    assert lost.get(broken) is None


def test_psutil_counts_no_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: None)
    report = probe()
    assert report.cpu_cores_physical is None
    assert_sound(report)


class Hostile(Mapping[str, str]):
    """An environment that cannot be read."""

    def __getitem__(self, key: str) -> str:
        raise RuntimeError("no environment")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError("no environment")


def test_an_environment_that_cannot_be_read() -> None:
    report = probe(env=Hostile())
    assert_sound(report)
    assert report.unknown["cuda_visible_devices"] == "RuntimeError: no environment"


def test_metadata_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> str:
        raise OSError(5, "Input/output error", "METADATA")

    monkeypatch.setattr(metadata, "version", fail)
    report = probe()
    assert_sound(report)
    assert report.packages == {}
    assert report.unknown["packages.torch"] == "METADATA: Input/output error"
    assert report.torch.build is not None  # its own file still tells


def test_undecodable_text_becomes_printable() -> None:
    report = probe(env={"CUDA_VISIBLE_DEVICES": "\udcff0"})
    assert_sound(report)
    assert report.cuda_visible_devices == "?0"


def test_an_output_folder_on_a_disk_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    report = probe(output=Path("Z:/runs"))
    assert_sound(report)
    assert report.disk.output_free_bytes is None
    assert "exists" in report.unknown["disk.output_free_bytes"]


def silent_driver() -> Any:
    raise RuntimeError("driver fell over")


def pci(root: Path, vendor: str) -> None:
    folder = root / "sys/bus/pci/devices/01"
    folder.mkdir(parents=True)
    for name, text in {"vendor": vendor, "device": "0x2504", "class": "0x030000"}.items():
        (folder / name).write_text(text, encoding="utf-8")


def test_an_nvidia_card_whose_driver_does_not_answer_is_told(tmp_path: Path) -> None:
    pci(tmp_path, "0x10de")
    report = survey(Sources(system="linux", env={}, root=tmp_path, load_nvml=silent_driver))
    assert report.gpus == ()
    assert report.unknown["gpus"] == (
        "NVIDIA card (PCI device 2504) is there, but its driver does not answer: RuntimeError: driver fell over"
    )


def test_without_an_nvidia_card_nothing_is_missed(tmp_path: Path) -> None:
    pci(tmp_path, "0x8086")
    report = survey(Sources(system="linux", env={}, root=tmp_path, load_nvml=silent_driver))
    assert [gpu.vendor for gpu in report.gpus] == ["intel"]
    assert "gpus" not in report.unknown
    assert report.unknown["cuda_driver"] == "RuntimeError: driver fell over"
    assert unexplained(report) == []


def test_wsl_hides_the_bus_so_a_silent_driver_is_told(tmp_path: Path) -> None:
    pci(tmp_path, "0x1414")
    kernel = tmp_path / "proc/sys/kernel/osrelease"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("6.6.87.2-microsoft-standard-WSL2\n", encoding="utf-8")
    report = survey(Sources(system="linux", env={}, root=tmp_path, load_nvml=silent_driver))
    assert report.platform.wsl
    assert report.unknown["gpus"] == "RuntimeError: driver fell over"


def test_a_missing_nvml_binding_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Exception, match="pip install nvidia-ml-py"):
        load_nvml()
    assert probe().unknown["cuda_driver"].startswith("nvidia-ml-py is not installed")


def test_machine_by_the_environment_where_the_kernel_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "uname", raising=False)
    assert machine({"PROCESSOR_ARCHITECTURE": "x86", "PROCESSOR_ARCHITEW6432": "AMD64"}) == "AMD64"
    with pytest.raises(Exception, match="PROCESSOR_ARCHITECTURE"):
        machine({})
