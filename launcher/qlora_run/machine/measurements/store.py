"""The cache of measurements: a record for each machine and set of kernels."""

from collections.abc import Sequence
from pathlib import Path

from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machine_key import MachineKey, digest
from qlora_profiles.machine_store import MachineStore
from qlora_profiles.settings import FIRST_CARD
from qlora_run.machine.measurements.records import Calibration, Kernels, Record, machine_of

KIND = "measurements"


def store(folder: Path | None = None) -> MachineStore[Record]:
    """Where measurements lie."""
    return MachineStore(KIND, Record, folder)


def load(report: HardwareReport, folder: Path | None = None, devices: Sequence[int] = FIRST_CARD) -> Calibration:
    """What was measured on this machine's card of that number, with these libraries."""
    machine = machine_of(report, devices)
    if machine is None:
        return Calibration()
    found = store(folder).read_all(digest(machine))
    return Calibration(
        records=tuple(each.value for each in found if each.value and each.value.machine == machine),
        notes=tuple(f"measurements left out: {each.note}" for each in found if each.note),
    )


def name_of(machine: MachineKey, kernels: Kernels) -> str:
    """The name of a record."""
    return f"{digest(machine)}-{digest(kernels)}"
