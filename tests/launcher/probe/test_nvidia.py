import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

from qlora_profiles.codec import from_json, to_json
from qlora_profiles.hardware import Gpu, GpuProcess, HardwareReport
from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.nvidia import Nvidia, Nvml, cuda_version, nvidia
from qlora_run.probe.sources import Sources
from qlora_run.probe.survey import survey

GIB = 2**30
# Every question that a card can be asked; a test below holds the list against what is really asked.
QUERIES = (
    "Init",
    "Shutdown",
    "SystemGetDriverVersion",
    "SystemGetCudaDriverVersion_v2",
    "DeviceGetCount",
    "DeviceGetHandleByIndex",
    "DeviceGetName",
    "DeviceGetUUID",
    "DeviceGetMemoryInfo",
    "DeviceGetCudaComputeCapability",
    "DeviceGetDisplayActive",
    "DeviceGetCurrentDriverModel",
    "DeviceGetMigMode",
    "DeviceGetMaxMigDeviceCount",
    "DeviceGetMigDeviceHandleByIndex",
    "DeviceGetTemperature",
    "DeviceGetComputeRunningProcesses",
    "DeviceGetGraphicsRunningProcesses",
)


@dataclass
class Board:
    """A card of the imitation; ``mig``: its instances by place (``None``: no such instance), ``None``: has no MIG."""

    uuid: str = "GPU-aaaa-1"
    name: str = "NVIDIA GeForce RTX 3060"
    total: int = 12 * GIB
    free: int = 11 * GIB
    capability: tuple[int, int] = (8, 6)
    display: int = 1
    model: int = 0
    temperature: int = 41
    mig: "list[Board | None] | None" = None
    compute: list[tuple[int, int | None]] = field(default_factory=list)
    graphics: list[tuple[int, int | None]] = field(default_factory=list)


class ImitationNvml:
    """NVML's binding over boards in memory; ``broken`` queries raise ``error``. Raises pynvml's own errors."""

    def __init__(self, boards: list[Board], broken: tuple[str, ...] = (), error: Exception | None = None) -> None:
        self.boards = boards
        self.asked: set[str] = set()
        self._broken, self._error = broken, error or pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        query = name.removeprefix("nvml")
        self.asked.add(query)
        answer = getattr(type(self), f"answer_{query}", None)
        if answer is None:
            raise AttributeError(name)

        def ask(*args: Any) -> Any:
            if query in self._broken:
                raise self._error
            return answer(self, *args)

        return ask

    def answer_Init(self) -> None: ...
    def answer_Shutdown(self) -> None: ...
    def answer_SystemGetDriverVersion(self) -> str:
        return "580.105.08"

    def answer_SystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def answer_DeviceGetCount(self) -> int:
        return len(self.boards)

    def answer_DeviceGetHandleByIndex(self, index: int) -> Board:
        return self.boards[index]

    def answer_DeviceGetName(self, board: Board) -> str:
        return board.name

    def answer_DeviceGetUUID(self, board: Board) -> str:
        return board.uuid

    def answer_DeviceGetMemoryInfo(self, board: Board) -> SimpleNamespace:
        return SimpleNamespace(total=board.total, free=board.free, used=board.total - board.free)

    def answer_DeviceGetCudaComputeCapability(self, board: Board) -> tuple[int, int]:
        return board.capability

    def answer_DeviceGetDisplayActive(self, board: Board) -> int:
        return board.display

    def answer_DeviceGetCurrentDriverModel(self, board: Board) -> int:
        return board.model

    def answer_DeviceGetMigMode(self, board: Board) -> list[int]:
        if board.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1] if board.mig else [0, 0]

    def answer_DeviceGetMaxMigDeviceCount(self, board: Board) -> int:
        return len(board.mig or ())

    def answer_DeviceGetMigDeviceHandleByIndex(self, board: Board, index: int) -> Board:
        instance = (board.mig or [])[index]
        if instance is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instance

    def answer_DeviceGetTemperature(self, board: Board, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return board.temperature

    def answer_DeviceGetComputeRunningProcesses(self, board: Board) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in board.compute]

    def answer_DeviceGetGraphicsRunningProcesses(self, board: Board) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in board.graphics]


def machine(binding: ImitationNvml, system: str = "linux", **env: str) -> Sources:
    return Sources(system=system, env=env, load_nvml=lambda: binding)  # type: ignore[arg-type]


def cards(binding: ImitationNvml, notes: Notes | None = None, system: str = "linux", **env: str) -> tuple[Gpu, ...]:
    return nvidia(machine(binding, system, **env), notes or Notes(), lambda pid: f"process-{pid}").gpus


def sliced() -> Board:
    slices: list[Board | None] = [
        Board("MIG-1111", "NVIDIA A100 MIG 1g.10gb", 10 * GIB, 9 * GIB),
        None,
        Board("MIG-2222", "NVIDIA A100 MIG 2g.20gb", 20 * GIB, 19 * GIB),
    ]
    return Board("GPU-bbbb", "NVIDIA A100", 80 * GIB, 70 * GIB, (8, 0), display=0, mig=slices)


def test_one_card() -> None:
    notes = Notes()
    board = Board(compute=[(7, 2 * GIB)], graphics=[(5, GIB), (7, GIB)])
    found = nvidia(machine(ImitationNvml([board])), notes, lambda pid: f"process-{pid}")
    gpu = Gpu(
        name="NVIDIA GeForce RTX 3060",
        uuid="GPU-aaaa-1",
        vram_total_bytes=12 * GIB,
        vram_free_bytes=11 * GIB,
        capability=(8, 6),
        driver="580.105.08",
        drives_display=True,
        mig=False,
        temperature_celsius=41,
        processes=(
            GpuProcess(pid=5, name="process-5", vram_bytes=GIB),
            GpuProcess(pid=7, name="process-7", vram_bytes=2 * GIB),
        ),
    )
    assert found == Nvidia((gpu,), "13.0")
    assert notes.reasons == {}


@pytest.mark.parametrize(("number", "model"), [(0, "wddm"), (1, "tcc"), (2, "mcdm")])
def test_driver_model_on_windows(number: int, model: str) -> None:
    assert cards(ImitationNvml([Board(model=number)]), system="windows")[0].driver_model == model


def test_a_driver_model_nobody_knows_yet() -> None:
    notes = Notes()
    assert cards(ImitationNvml([Board(model=9)]), notes, "windows")[0].driver_model is None
    assert "gpus.0.driver_model" in notes.reasons


def test_memory_that_windows_does_not_tell_per_process() -> None:
    notes = Notes()
    (gpu,) = cards(ImitationNvml([Board(graphics=[(5, None), (6, GIB)])]), notes, "windows")
    assert [process.vram_bytes for process in gpu.processes] == [None, GIB]
    assert "gpus.0.processes.vram_bytes" in notes.reasons


@pytest.mark.parametrize(
    ("variable", "uuids"),
    [
        ("1,0", ["GPU-aaaa-2", "GPU-aaaa-1"]),
        ("GPU-aaaa-2", ["GPU-aaaa-2"]),
        ("-1", []),
        ("", []),
        ("1,9,0", ["GPU-aaaa-2"]),
    ],
)
def test_cuda_visible_devices(variable: str, uuids: list[str]) -> None:
    found = cards(ImitationNvml([Board(), Board("GPU-aaaa-2")]), CUDA_VISIBLE_DEVICES=variable)
    assert [gpu.uuid for gpu in found] == uuids
    assert [gpu.index for gpu in found] == list(range(len(uuids)))


def test_reasons_carry_the_place_in_the_report_not_on_the_bus() -> None:
    notes = Notes()
    binding = ImitationNvml([Board(), Board("GPU-aaaa-2")], broken=("DeviceGetTemperature",))
    cards(binding, notes, CUDA_VISIBLE_DEVICES="1")
    assert list(notes.reasons) == ["gpus.0.temperature_celsius"]


def test_cards_that_differ_may_be_numbered_otherwise() -> None:
    boards = [Board(), Board("GPU-bbbb", "NVIDIA GeForce RTX 4090")]
    notes = Notes()
    cards(ImitationNvml(boards), notes)
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in notes.reasons["gpus.index"]
    notes = Notes()
    cards(ImitationNvml(boards), notes, CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert notes.reasons == {}


def test_a_mig_instance_has_its_own_memory_and_its_cards_capability() -> None:
    (gpu,) = cards(ImitationNvml([sliced()]), CUDA_VISIBLE_DEVICES="MIG-2222")
    assert (gpu.uuid, gpu.name) == ("MIG-2222", "NVIDIA A100 MIG 2g.20gb")
    assert (gpu.vram_total_bytes, gpu.vram_free_bytes) == (20 * GIB, 19 * GIB)
    assert (gpu.capability, gpu.mig) == ((8, 0), True)


def test_without_a_choice_the_first_mig_instance_is_all() -> None:
    assert [gpu.uuid for gpu in cards(ImitationNvml([Board(), sliced()]))] == ["MIG-1111"]


def test_a_card_that_can_but_does_not_slice() -> None:
    (gpu,) = cards(ImitationNvml([Board(mig=[])]))
    assert (gpu.mig, gpu.uuid) == (False, "GPU-aaaa-1")


def test_a_lost_card_is_left_out_with_its_reason() -> None:
    class OneLost(ImitationNvml):
        def answer_DeviceGetHandleByIndex(self, index: int) -> Board:
            if index == 0:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return self.boards[index]

    notes = Notes()
    assert [gpu.uuid for gpu in cards(OneLost([Board(), Board("GPU-cccc")]), notes)] == ["GPU-cccc"]
    assert notes.reasons == {"gpus": "card 0 is left out: NVML DeviceGetHandleByIndex: GPU is lost"}


def test_a_query_that_an_old_binding_lacks() -> None:
    answer = Nvml(ImitationNvml([])).ask("DeviceGetSomethingNew", 0)
    assert answer.value is None
    assert answer.reason is not None
    assert "AttributeError" in answer.reason


def test_an_nvml_that_does_not_start() -> None:
    notes = Notes()
    error = pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    found = nvidia(machine(ImitationNvml([Board()], ("Init",), error)), notes, str)
    assert found == Nvidia(failure="NVML Init: Driver Not Loaded")
    assert notes.reasons == {"cuda_driver": "NVML Init: Driver Not Loaded"}


def test_nvml_is_shut_down() -> None:
    binding = ImitationNvml([Board()])
    cards(binding)
    assert "Shutdown" in binding.asked


def test_cuda_version() -> None:
    assert [cuda_version(number) for number in (13000, 12080, 11040)] == ["13.0", "12.8", "11.4"]


def test_the_list_of_queries_is_whole() -> None:
    plain, with_mig = ImitationNvml([Board()]), ImitationNvml([sliced()])
    cards(plain, system="windows")
    cards(with_mig, system="windows")
    assert plain.asked | with_mig.asked == set(QUERIES)


ERRORS = (
    pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
    pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST),
    OSError("access violation reading 0x0"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
)
# What a report lacks when one query fails; the rest of it stays.
LOST = {
    "SystemGetDriverVersion": ("driver",),
    "DeviceGetUUID": ("uuid",),
    "DeviceGetMemoryInfo": ("vram_total_bytes", "vram_free_bytes"),
    "DeviceGetCudaComputeCapability": ("capability",),
    "DeviceGetDisplayActive": ("drives_display",),
    "DeviceGetCurrentDriverModel": ("driver_model",),
    "DeviceGetTemperature": ("temperature_celsius",),
}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("boards", [[Board()], [sliced(), Board("GPU-cccc")]], ids=["plain", "mig"])
def test_no_failing_query_stops_the_report(query: str, error: Exception, boards: list[Board], tmp_path: Path) -> None:
    binding = ImitationNvml(boards, (query,), error)
    report = survey(machine(binding, "windows"), tmp_path, tmp_path)
    assert from_json(to_json(report), HardwareReport, query) == report
    assert bool(report.gpus) or "gpus" in report.unknown or "cuda_driver" in report.unknown
    for place, gpu in enumerate(report.gpus):
        gaps = {name for name in gpu.__struct_fields__ if getattr(gpu, name) is None}
        assert gaps <= {name for name in gpu.__struct_fields__ if f"gpus.{place}.{name}" in report.unknown}
    for name in LOST.get(query, ()):
        assert getattr(report.gpus[0], name) is None
        assert report.unknown[f"gpus.0.{name}"].startswith(f"NVML {query}: ")


@pytest.mark.parametrize("query", ["DeviceGetName", "DeviceGetComputeRunningProcesses", "DeviceGetMigMode"])
def test_what_else_is_lost_with_a_query(query: str) -> None:
    notes = Notes()
    (gpu,) = cards(ImitationNvml([Board(graphics=[(4, GIB)])], (query,)), notes)
    field_of = {"DeviceGetName": "name", "DeviceGetComputeRunningProcesses": "processes", "DeviceGetMigMode": "mig"}
    assert list(notes.reasons) == [f"gpus.0.{field_of[query]}"]
    assert gpu.name == ("NVIDIA card" if query == "DeviceGetName" else Board.name)
    assert [process.pid for process in gpu.processes] == [4]


def test_two_reasons_for_one_field_are_both_kept() -> None:
    notes = Notes()
    queries = ("DeviceGetComputeRunningProcesses", "DeviceGetGraphicsRunningProcesses")
    cards(ImitationNvml([Board()], queries), notes)
    assert notes.reasons == {"gpus.0.processes": "; ".join(f"NVML {query}: Unknown Error" for query in queries)}


def test_processes_are_named_outside_a_container_only(tmp_path: Path) -> None:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/cgroup").write_text("0::/init.scope\n", encoding="utf-8")
    binding = ImitationNvml([Board(compute=[(os.getpid(), GIB)])])
    sources = Sources(system="linux", env={}, root=tmp_path, load_nvml=lambda: binding)
    assert survey(sources).gpus[0].processes[0].name == psutil.Process().name()
    (tmp_path / ".dockerenv").touch()
    report = survey(sources)
    assert report.gpus[0].processes[0].name is None
    assert "container" in report.unknown["gpus.0.processes.name"]


def test_a_process_that_has_ended_has_no_name(tmp_path: Path) -> None:
    def gone(pid: int) -> str:
        raise Unknowable("it has ended")

    notes = Notes()
    found = nvidia(machine(ImitationNvml([Board(compute=[(9, GIB)])])), notes, gone)
    assert found.gpus[0].processes == (GpuProcess(pid=9, vram_bytes=GIB),)
    assert notes.reasons == {"gpus.0.processes.name": "it has ended"}


def test_the_real_binding_has_every_query() -> None:
    assert [query for query in QUERIES if not hasattr(pynvml, f"nvml{query}")] == []
