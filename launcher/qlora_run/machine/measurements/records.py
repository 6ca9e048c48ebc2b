"""Measurements of one machine's card, and what follows from them for a prediction."""

from collections.abc import Sequence
from math import hypot
from statistics import median
from typing import Any, Literal, NamedTuple

from msgspec import Struct, structs

from qlora_profiles.facts import Ceilings
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machine_key import MachineKey, machine_key
from qlora_profiles.settings import FIRST_CARD, Execution
from qlora_profiles.units import MIB

ALLOCATING = ("torch", "bitsandbytes")
"""Libraries that take memory on the card."""

MOST_MEASUREMENTS = 20
"""Older ones are forgotten: drivers and libraries age too. Set by hand."""

SMALLEST_SHARE, SMALLEST_BYTES = 0.01, 48 * MIB
"""Never is a prediction of passing memory taken to be better than this share of it and these bytes."""
FIRST_SHARE = 0.02
"""The same share after one measurement only, which has no spread: set by hand."""
SCALES, OFFSETS_BYTES = 0.05, 200 * MIB
"""How far passing memory may well be from its prediction on a machine: in proportion, and whatever its size."""
NOISE_SHARE, NOISE_BYTES = 0.01, 60 * MIB
"""How far single steps lie from such a line. Points of an H200, each predicted by one other of the same model and
kernels, are then within 3% but for the worst hundredth on either side, which in proportion alone is off by more than 5%
(tests/launcher/planner/cost/test_memory.py): a step in which little passes says nothing of one in which much does."""


class Kernels(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The backend and the kernels that decide what stays outside of tensors and how fast a step is."""

    backend: str
    attention: str
    compute_dtype: str
    adapter_kernel: str
    dequantize_kernel: str
    layer_kernels: str
    cuda_graphs: bool
    expandable_segments: bool

    @classmethod
    def of(cls, execution: Execution) -> "Kernels":
        """Those of a plan."""
        return cls(**{name: getattr(execution, name) for name in cls.__struct_fields__})


class Measurement(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run's peak beside its prediction. Memory is in bytes, without what stays (weights, adapter, state).

    ``context_bytes`` is what the process held outside torch's allocator, less what the method adds to it;
    ``of_run`` tells the same run again, but for what is searched, which is in ``limits``.
    """

    context_bytes: int
    predicted_passing_bytes: int
    measured_passing_bytes: int
    predicted_step_seconds: float | None = None
    measured_step_seconds: float | None = None
    of_run: str = ""
    limits: dict[str, Any] = {}


class Record(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A cache file: the measurements of one machine with one set of kernels, the newest last, and its ceilings."""

    schema: Literal[1] = 1
    machine: MachineKey
    kernels: Kernels
    measurements: tuple[Measurement, ...] = ()
    ceilings: Ceilings | None = None

    def plus(self, measurement: Measurement, ceilings: Ceilings | None = None) -> "Record":
        """This record with one more measurement, the oldest forgotten where there are many."""
        kept = (*self.measurements, measurement)[-MOST_MEASUREMENTS:]
        return structs.replace(self, measurements=kept, ceilings=ceilings or self.ceilings)


class Fitted(NamedTuple):
    """What a record says: context, passing memory as ``scale * predicted + offset_bytes`` with its error bar, time.

    ``own_run``: it is of the very run that is planned.
    """

    context_bytes: int
    scale: float
    offset_bytes: int
    uncertain_share: float
    uncertain_bytes: int
    measurements: int
    speed_scale: float | None
    ceilings: Ceilings | None = None
    own_run: bool = False


def fitted(record: Record) -> Fitted | None:
    """The likeliest line through the measurements, and how far they lie off it; ``None`` where there are none."""
    found = record.measurements
    if not found:
        return None
    scale, offset = _line(found)
    off = max(
        abs(m.measured_passing_bytes - scale * m.predicted_passing_bytes - offset) / _noise_bytes(m) for m in found
    )
    worse = max(1.0, off)
    times = [
        m.measured_step_seconds / m.predicted_step_seconds
        for m in found
        if m.measured_step_seconds and m.predicted_step_seconds
    ]
    return Fitted(
        context_bytes=round(median(m.context_bytes for m in found)),
        scale=scale,
        offset_bytes=round(offset),
        uncertain_share=worse * (SMALLEST_SHARE if len(found) > 1 else FIRST_SHARE),
        uncertain_bytes=round(worse * SMALLEST_BYTES),
        measurements=len(found),
        speed_scale=median(times) if times else None,
        ceilings=record.ceilings,
    )


def _noise_bytes(measurement: Measurement) -> float:
    return hypot(NOISE_BYTES, NOISE_SHARE * measurement.predicted_passing_bytes)


def _line(found: Sequence[Measurement]) -> tuple[float, float]:
    """Scale and offset of passing memory: least squares, with what is likely on any machine as two more points.

    Through a single measurement, since a run's own is no prediction: what it held is known.
    """
    if len(found) == 1:
        return _through(found[0])
    squares, sums, count = 1 / SCALES**2, 0.0, 1 / OFFSETS_BYTES**2
    along, above = 0.0, 0.0
    for each in found:
        predicted, weight = each.predicted_passing_bytes, 1 / _noise_bytes(each) ** 2
        missing = each.measured_passing_bytes - predicted
        squares += weight * predicted**2
        sums += weight * predicted
        count += weight
        along += weight * predicted * missing
        above += weight * missing
    determinant = squares * count - sums**2
    return 1 + (count * along - sums * above) / determinant, (squares * above - sums * along) / determinant


def _through(measurement: Measurement) -> tuple[float, float]:
    predicted = measurement.predicted_passing_bytes
    missing = measurement.measured_passing_bytes - predicted
    of_scale, of_offset = (SCALES * predicted) ** 2, OFFSETS_BYTES**2
    offset = missing * of_offset / (of_scale + of_offset)
    return 1 + (missing - offset) / max(1, predicted), offset


class Calibration(Struct, frozen=True, kw_only=True):
    """Everything measured on a machine; with ``own_run`` what was measured of the run that is planned, alone.

    ``notes`` say what was found in the cache and could not be used.
    """

    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()
    own_run: bool = False

    def of(self, kernels: Kernels) -> Fitted | None:
        """What holds for a set of kernels, or ``None``."""
        found = next((fitted(record) for record in self.records if record.kernels == kernels), None)
        return found._replace(own_run=self.own_run) if found else None

    def of_run(self, key: str) -> list[tuple[dict[str, Any], "Calibration"]]:
        """What a run was measured with, each with a calibration by that measurement alone.

        Of several with one execution the last one counts, and it comes first where kernels are the same.
        """
        found: list[tuple[dict[str, Any], Calibration]] = []
        for record in self.records:
            for measurement in reversed(record.measurements):
                if measurement.of_run == key and all(limits != measurement.limits for limits, _ in found):
                    alone = structs.replace(record, measurements=(measurement,))
                    found.append((measurement.limits, Calibration(records=(alone,), own_run=True)))
        return found


def machine_of(report: HardwareReport, devices: Sequence[int] = FIRST_CARD) -> MachineKey | None:
    """What a measurement holds for: the card that computes with its driver, and what allocates on it.

    ``None`` without a card.
    """
    if not report.cards(devices):
        return None
    return machine_key(report).of_cuda_cards(ALLOCATING, devices)
