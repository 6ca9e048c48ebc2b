"""NVIDIA cards as NVML tells of them. Every question to NVML goes through ``Nvml.ask``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qlora_profiles.hardware import Gpu, GpuProcess
from qlora_run.probe.notes import Notes, Unknowable, why
from qlora_run.probe.sources import Sources
from qlora_run.probe.visible import Card, Pick, order_doubt, select

# Numbers of NVML's binary interface (nvml.h), which do not change.
_NOT_SUPPORTED = 3
_CORE_SENSOR = 0
_DRIVER_MODELS = {0: "wddm", 1: "tcc", 2: "mcdm"}

Namer = Callable[[int], str]


@dataclass(frozen=True)
class Answer:
    """NVML's answer, or ``None`` and the reason; ``unsupported``: the card has no such thing at all."""

    value: Any = None
    reason: str | None = None
    unsupported: bool = False


class Nvml:
    """NVML behind one funnel that never raises."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def ask(self, query: str, *args: Any, read: Callable[[Any], Any] = lambda value: value) -> Answer:
        """Call ``nvml<query>(*args)``; ``read`` takes what is wanted out of the answer."""
        try:
            return Answer(read(getattr(self._binding, f"nvml{query}")(*args)))
        except Exception as error:  # the binding raises NVMLError, AttributeError, ctypes and decoding errors
            unsupported = getattr(error, "value", None) == _NOT_SUPPORTED
            return Answer(None, f"NVML {query}: {_error_text(error)}", unsupported)


@dataclass(frozen=True)
class Nvidia:
    """What NVML knows of the machine. ``failure``: why it could not be asked at all."""

    gpus: tuple[Gpu, ...] = ()
    cuda_driver: str | None = None
    failure: str | None = None


@dataclass(frozen=True)
class _Slot:
    """A card with its NVML handles: its own and its MIG instances'."""

    card: Card
    handle: Any
    instances: tuple[Any, ...] = ()
    mig: Answer = Answer()


def nvidia(sources: Sources, notes: Notes, process_name: Namer) -> Nvidia:
    """The NVIDIA cards that CUDA would number, in its order; reasons go to ``notes``."""
    try:
        with _session(sources) as nvml:
            return _survey(nvml, sources, notes, process_name)
    except Exception as error:  # a binding that breaks on import, a driver library that cannot be loaded
        notes.add("cuda_driver", why(error))
        return Nvidia(failure=why(error))


@contextmanager
def _session(sources: Sources) -> Iterator[Nvml]:
    """NVML between its init and its shutdown. Raises Unknowable when it does not start."""
    nvml = Nvml(sources.load_nvml())
    started = nvml.ask("Init")
    if started.reason:
        raise Unknowable(started.reason)
    try:
        yield nvml
    finally:
        nvml.ask("Shutdown")


def _survey(nvml: Nvml, sources: Sources, notes: Notes, process_name: Namer) -> Nvidia:
    cuda = nvml.ask("SystemGetCudaDriverVersion_v2", read=cuda_version)
    notes.add("cuda_driver", cuda.reason)
    slots = _slots(nvml, notes)
    cards = [slot.card for slot in slots]
    listed = sources.env.get("CUDA_VISIBLE_DEVICES")
    selection = select(listed, cards)
    notes.add("gpus", selection.reason)
    notes.add("gpus.index", order_doubt(listed, sources.env.get("CUDA_DEVICE_ORDER"), cards))
    reader = _Reader(nvml, notes, sources.system == "windows", process_name, nvml.ask("SystemGetDriverVersion"))
    gpus = (reader.gpu(index, slots[pick.card], pick) for index, pick in enumerate(selection.picks))
    return Nvidia(tuple(gpus), cuda.value)


def cuda_version(number: int) -> str:
    """NVML's 13000 as ``"13.0"``: 1000 * major + 10 * minor (nvmlSystemGetCudaDriverVersion)."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _slots(nvml: Nvml, notes: Notes) -> list[_Slot]:
    count = nvml.ask("DeviceGetCount", read=int)
    notes.add("gpus", count.reason)
    slots = []
    for index in range(count.value or 0):
        handle = nvml.ask("DeviceGetHandleByIndex", index)
        if handle.reason:
            notes.add("gpus", f"card {index} is left out: {handle.reason}")
        else:
            slots.append(_slot(nvml, handle.value))
    return slots


def _slot(nvml: Nvml, handle: Any) -> _Slot:
    uuid, name = (nvml.ask(query, handle, read=str).value for query in ("DeviceGetUUID", "DeviceGetName"))
    mig = nvml.ask("DeviceGetMigMode", handle, read=lambda modes: bool(modes[0]))
    if mig.unsupported:  # a card without MIG: that is an answer
        mig = Answer(False)
    if not mig.value:
        return _Slot(Card(uuid, name), handle, mig=mig)
    instances = tuple(_instances(nvml, handle))
    uuids = tuple(nvml.ask("DeviceGetUUID", instance, read=str).value for instance in instances)
    return _Slot(Card(uuid, name, uuids), handle, instances, mig)


def _instances(nvml: Nvml, handle: Any) -> Iterator[Any]:
    """Handles of the MIG instances; places without one answer "not found"."""
    for index in range(nvml.ask("DeviceGetMaxMigDeviceCount", handle, read=int).value or 0):
        instance = nvml.ask("DeviceGetMigDeviceHandleByIndex", handle, index)
        if not instance.reason:
            yield instance.value


@dataclass(frozen=True)
class _Reader:
    """Reads one card at a time."""

    nvml: Nvml
    notes: Notes
    windows: bool
    process_name: Namer
    driver: Answer

    def gpu(self, index: int, slot: _Slot, pick: Pick) -> Gpu:
        """The card that CUDA numbers ``index``. Of a MIG instance memory and name are its own, the rest its card's."""
        own = slot.handle if pick.instance is None else slot.instances[pick.instance]
        memory = self.nvml.ask("DeviceGetMemoryInfo", own, read=lambda info: (int(info.total), int(info.free)))
        total, free = memory.value or (None, None)
        answers = {
            "name": self.nvml.ask("DeviceGetName", own, read=str),
            "uuid": self.nvml.ask("DeviceGetUUID", own, read=str),
            "vram_total_bytes": Answer(total, memory.reason),
            "vram_free_bytes": Answer(free, memory.reason),
            "capability": self.nvml.ask("DeviceGetCudaComputeCapability", slot.handle, read=_two_numbers),
            "driver": self.driver,
            "drives_display": self.nvml.ask("DeviceGetDisplayActive", slot.handle, read=bool),
            "driver_model": self._driver_model(slot.handle),
            "mig": slot.mig,
            "temperature_celsius": self.nvml.ask("DeviceGetTemperature", slot.handle, _CORE_SENSOR, read=int),
        }
        for name, answer in answers.items():
            self.notes.add(f"gpus.{index}.{name}", answer.reason)
        facts = {name: answer.value for name, answer in answers.items()}
        facts["name"] = facts["name"] or "NVIDIA card"
        return Gpu(vendor="nvidia", index=index, processes=self._processes(index, own), **facts)

    def _driver_model(self, handle: Any) -> Answer:
        if not self.windows:
            return Answer()
        return self.nvml.ask("DeviceGetCurrentDriverModel", handle, read=lambda model: _DRIVER_MODELS[model])

    def _processes(self, index: int, handle: Any) -> tuple[GpuProcess, ...]:
        """Processes with a context on the card, by number; one that computes and draws stands in both lists."""
        held: dict[int, int | None] = {}
        for query in ("DeviceGetComputeRunningProcesses", "DeviceGetGraphicsRunningProcesses"):
            answer = self.nvml.ask(query, handle, read=lambda rows: [(int(row.pid), row.usedGpuMemory) for row in rows])
            self.notes.add(f"gpus.{index}.processes", answer.reason)
            for pid, used in answer.value or ():
                held[pid] = max((v for v in (held.get(pid), used) if v is not None), default=None)
        if None in held.values():
            self.notes.add(f"gpus.{index}.processes.vram_bytes", "the driver does not tell it of every process")
        return tuple(GpuProcess(pid=pid, name=self._name(index, pid), vram_bytes=held[pid]) for pid in sorted(held))

    def _name(self, index: int, pid: int) -> str | None:
        return self.notes.ask(lambda: self.process_name(pid), f"gpus.{index}.processes.name")


def _two_numbers(pair: Any) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])


def _error_text(error: Exception) -> str:
    """NVML's own words, which need no class name before them."""
    return str(error) if hasattr(error, "value") and str(error) else why(error)
