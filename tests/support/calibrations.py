"""Writing calibration records over and over; a module of its own so that a spawned process can import it by name."""

from pathlib import Path

from qlora_profiles.hardware import HardwareReport
from qlora_profiles.settings import Execution
from qlora_run.calibration.records import Kernels, Measurement, Record, machine_of
from qlora_run.calibration.store import write


def write_often(report: HardwareReport, execution: Execution, folder: str, context_bytes: int) -> None:
    """Write one machine's record 30 times, each with the same 20 measurements."""
    machine = machine_of(report)
    assert machine is not None
    one = Measurement(context_bytes=context_bytes, predicted_passing_bytes=1000, measured_passing_bytes=1000)
    for _ in range(30):
        write(Record(machine=machine, kernels=Kernels.of(execution), measurements=(one,) * 20), Path(folder))
