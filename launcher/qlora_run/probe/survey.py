"""The whole machine in one report."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from qlora_profiles.hardware import Gpu, HardwareReport, Platform
from qlora_run.probe import othergpus, software, system
from qlora_run.probe.notes import Notes, Unknowable
from qlora_run.probe.nvidia import Namer, Nvidia, nvidia
from qlora_run.probe.sources import Sources


def probe(
    output: Path | None = None, cache: Path | None = None, env: Mapping[str, str] | None = None
) -> HardwareReport:
    """What this machine is. Never raises: what cannot be known is ``None``, with the reason in ``unknown``.

    Args:
        output: folder of the run; it need not exist yet (default: the current folder).
        cache: folder of downloaded models (default: the hub's, by ``env``).
        env: environment variables to go by (default: this process's).
    """
    return survey(Sources(env=os.environ if env is None else env), output, cache)


def survey(sources: Sources, output: Path | None = None, cache: Path | None = None) -> HardwareReport:
    """``probe`` of whatever machine stands behind ``sources``."""
    notes = Notes()
    here = notes.ask(lambda: system.platform(sources, notes), "platform") or Platform(system=sources.system)
    gpus, cuda_driver = notes.ask(lambda: _gpus(sources, notes, here), "gpus") or ((), None)
    installed = software.packages(notes)
    report = HardwareReport(
        platform=here,
        cpu_name=notes.ask(lambda: system.cpu_name(sources), "cpu_name"),
        cpu_cores_physical=notes.ask(system.physical_cores, "cpu_cores_physical"),
        cpu_cores_logical=system.logical_cores(sources, notes),
        memory=system.memory(sources, notes),
        disk=system.disk(sources, notes, output, cache),
        gpus=gpus,
        cuda_driver=cuda_driver,
        cuda_visible_devices=notes.ask(lambda: sources.env.get("CUDA_VISIBLE_DEVICES"), "cuda_visible_devices"),
        torch=software.torch(sources, notes, installed.get("torch")),
        packages=installed,
        unknown=notes.reasons,
    )
    return msgspec.convert(_printable(msgspec.to_builtins(report)), HardwareReport)


def _gpus(sources: Sources, notes: Notes, here: Platform) -> tuple[tuple[Gpu, ...], str | None]:
    """NVIDIA's cards as CUDA numbers them, then the others; and the newest CUDA that the driver serves."""
    found = nvidia(sources, notes, _process_namer(here))
    detected = notes.ask(lambda: othergpus.detected_cards(sources), "gpus")
    if found.failure:
        notes.add("gpus", _silent_cards(found, detected, here))
    return found.gpus + othergpus.other_gpus(detected or [], notes, len(found.gpus)), found.cuda_driver


def _silent_cards(found: Nvidia, detected: list[othergpus.DetectedCard] | None, here: Platform) -> str | None:
    """Why NVIDIA cards may be missing from the report; ``None`` when there are none to miss."""
    silent = [card.name for card in detected or () if card.vendor == "nvidia"]
    if silent:
        return f"{', '.join(silent)} is there, but its driver does not answer: {found.failure}"
    return found.failure if detected is None or here.wsl else None


def _process_namer(here: Platform) -> Namer:
    """Names processes; not in a container, where NVML may give the host's numbers and the names would be wrong."""

    def name(pid: int) -> str:
        if here.container:
            raise Unknowable("in a container the numbers may be the host's")
        import psutil

        return str(psutil.Process(pid).name())

    return name


def _printable(value: Any) -> Any:
    """The same value without the half characters that stand for undecodable bytes, which JSON cannot carry."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list | tuple) else value
