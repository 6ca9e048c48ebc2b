"""Faults planted for real: a folder to put first on Python's path, a disk that is full, a card that others hold."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from qlora_profiles.units import GIB
from qlora_run.doctor.diagnosis import CheckResult, Diagnosis
from support.command_line import process, python_path

WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] == GONE else super().find_spec(name, path, target)

    @staticmethod
    def find_distributions(*args, **more):
        return (found for found in PathFinder.find_distributions(*args, **more) if found.metadata["Name"] != GONE)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
CPU_TORCH = """
import os, sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

here = Path(__file__).resolve().parents[1]
os.environ["CUDA_VISIBLE_DEVICES"] = ""
spec = PathFinder.find_spec("torch", [place for place in sys.path if Path(place).resolve() != here])
real = sys.modules["torch"] = module_from_spec(spec)
spec.loader.exec_module(real)
real.__version__, real.version.cuda = type(real.__version__)(VERSION), None
"""
NVML = """
from types import SimpleNamespace

class NVMLError(Exception):
    value = 3

ANSWERS = {
    "Init": None, "Shutdown": None, "SystemGetDriverVersion": "580.105.08", "SystemGetCudaDriverVersion_v2": 13000,
    "DeviceGetCount": 1, "DeviceGetHandleByIndex": 0, "DeviceGetName": "NVIDIA H200", "DeviceGetUUID": "GPU-1",
    "DeviceGetMemoryInfo": SimpleNamespace(total=TOTAL, free=TOTAL), "DeviceGetCudaComputeCapability": (9, 0),
    "DeviceGetDisplayActive": 0, "DeviceGetTemperature": 40,
    "DeviceGetComputeRunningProcesses": [], "DeviceGetGraphicsRunningProcesses": [],
}

def __getattr__(name):
    def ask(*args):
        if name.removeprefix("nvml") not in ANSWERS:
            raise NVMLError("Not Supported")
        return ANSWERS[name.removeprefix("nvml")]
    return ask
"""
HOLD = """
import sys, torch
held, size = [], 2**34
while size >= 2**24:
    try:
        held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        size //= 2
print("full", flush=True)
sys.stdin.read()
"""
SMALL_BYTES = GIB
"""A disk in memory of less may be filled by a test."""


def without(folder: Path, package: str) -> Path:
    """Where ``package`` is neither found by its metadata nor imported, in no process that is started."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(f"GONE = {package!r}\n{WITHOUT}", encoding="utf-8")
    return folder


def cpu_torch(folder: Path, *, metadata: bool = True) -> Path:
    """The installed torch as a build without CUDA; without ``metadata`` a mere folder that is in the way."""
    version = importlib.metadata.version("torch").split("+")[0] + "+cpu"
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(f"VERSION = {version!r}\n{CPU_TORCH}", encoding="utf-8")
    constants = f"__version__ = {version!r}\ncuda = None\nhip = None\n"
    (folder / "torch" / "version.py").write_text(constants, encoding="utf-8")
    if metadata:
        info = folder / f"torch-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n", encoding="utf-8")
    return folder


def imitated_card(folder: Path) -> Path:
    """A driver that tells of one card, which nothing can compute on."""
    folder.mkdir()
    (folder / "pynvml.py").write_text(f"TOTAL = {141 * GIB}\n{NVML}", encoding="utf-8")
    return folder


def mounted(folder: Path, options: str) -> str:
    """Mount a disk in memory with mount's ``options``; why that cannot be, or ``""``."""
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    except OSError as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""


@contextmanager
def read_only_disk(folder: Path) -> Iterator[Path]:
    """A roomy disk that not even root can write to; skips the test where nothing may be mounted."""
    if refused := mounted(folder, "ro,size=128g"):
        pytest.skip(f"nothing may be mounted: {refused}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A disk without a free byte: one of its own, or a small ``/dev/shm``; skips the test where there is neither."""
    refused = mounted(folder, "size=8m")
    disk = Path("/dev/shm") if refused else folder
    if refused and (not disk.is_dir() or shutil.disk_usage(disk).total >= SMALL_BYTES):
        pytest.skip(f"nothing may be mounted, and no disk is small: {refused}")
    filling = disk / f"filling-{os.getpid()}"
    try:
        fill(filling)
        yield disk
    finally:
        filling.unlink()
        if not refused:
            subprocess.run(["umount", disk], check=True)


def fill(filling: Path) -> None:
    """Write to a file until its disk is full."""
    with filling.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(2**16)):
                pass
        except OSError:
            return


@contextmanager
def held_card() -> Iterator[int]:
    """A process that holds all memory of the first card; its number."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline().strip() == "full"
            yield holder.pid
        finally:
            holder.kill()


def doctor(
    cwd: Path, *words: str, path: tuple[Path, ...] = (), card: bool = False, env: Mapping[str, str] | None = None
) -> Diagnosis:
    """What ``qlora-run doctor --json`` finds in a process of its own, with ``path`` first on Python's.

    Without ``card`` no real card is seen. Nothing that an earlier doctor found counts.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") if card else "-1"
    ours = {"PYTHONPATH": python_path(*path), "QLORA_RUN_CACHE": str(cwd / "ours"), "CUDA_VISIBLE_DEVICES": hidden}
    done = process("doctor", "--json", *words, cwd=cwd, env={**ours, **(env or {})})
    said = done.stderr.decode(errors="replace")
    assert "Traceback" not in said, said
    diagnosis = msgspec.json.decode(done.stdout, type=Diagnosis)
    assert done.returncode == diagnosis.exit_code, said
    return diagnosis


def failed(diagnosis: Diagnosis) -> dict[str, CheckResult]:
    """The problems by id; each says what follows from it and the way on, and the first one's is the next command."""
    problems = [result for result in diagnosis.checks if result.verdict == "fail"]
    for result in problems:
        assert result.consequence, result
        assert result.fix is not None, result
        assert result.fix.say, result
    if problems:
        first = problems[0].fix
        assert first is not None
        assert (diagnosis.next, diagnosis.exit_code) == (first.say, 3)
        assert diagnosis.summary.startswith("Not ready")
    return {result.id: result for result in problems}


def result_of(diagnosis: Diagnosis, id: str) -> CheckResult:
    """The one result of a check."""
    (result,) = (result for result in diagnosis.checks if result.id == id)
    return result
