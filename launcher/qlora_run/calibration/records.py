"""Measurements of one machine's card, and what follows from them for a prediction."""

from statistics import median
from typing import Any, Literal, NamedTuple

from msgspec import Struct, structs

from qlora_profiles.facts import Ceilings
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.settings import Execution

MOST_MEASUREMENTS = 20
"""Older ones are forgotten: drivers and libraries age too."""

SMALLEST_SHARE = 0.01
"""Never is a prediction of passing memory taken to be better than this."""
FIRST_SHARE = 0.02
"""The same after one measurement only, which has no spread."""


class Machine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a measurement holds for: the card with its driver, and the libraries that allocate on it."""

    gpu: str
    driver: str | None
    torch: str | None
    bitsandbytes: str | None


class Kernels(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The backend and the kernels that decide what stays outside of tensors and how fast a step is."""

    backend: str
    attention: str
    compute_dtype: str
    adapter_kernel: str
    weight_kernel: str
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
    machine: Machine
    kernels: Kernels
    measurements: tuple[Measurement, ...] = ()
    ceilings: Ceilings | None = None

    def plus(self, measurement: Measurement, ceilings: Ceilings | None = None) -> "Record":
        """This record with one more measurement, the oldest forgotten where there are many."""
        kept = (*self.measurements, measurement)[-MOST_MEASUREMENTS:]
        return structs.replace(self, measurements=kept, ceilings=ceilings or self.ceilings)


class Fitted(NamedTuple):
    """What a record says: context, measured over predicted passing memory with its error bar, and over time."""

    context_bytes: int
    scale: float
    uncertain_share: float
    measurements: int
    speed_scale: float | None
    ceilings: Ceilings | None = None


def fitted(record: Record) -> Fitted | None:
    """The middle of the measurements, and how far they lie apart; ``None`` where there are none."""
    found = record.measurements
    if not found:
        return None
    ratios = [m.measured_passing_bytes / max(1, m.predicted_passing_bytes) for m in found]
    scale = median(ratios)
    spread = max(abs(ratio / scale - 1) for ratio in ratios) if len(ratios) > 1 else FIRST_SHARE
    times = [
        m.measured_step_seconds / m.predicted_step_seconds
        for m in found
        if m.measured_step_seconds and m.predicted_step_seconds
    ]
    return Fitted(
        context_bytes=round(median(m.context_bytes for m in found)),
        scale=scale,
        uncertain_share=max(SMALLEST_SHARE, spread),
        measurements=len(found),
        speed_scale=median(times) if times else None,
        ceilings=record.ceilings,
    )


class Calibration(Struct, frozen=True, kw_only=True):
    """Everything measured on a machine. ``notes`` say what was found in the cache and could not be used."""

    records: tuple[Record, ...] = ()
    notes: tuple[str, ...] = ()

    def of(self, kernels: Kernels) -> Fitted | None:
        """What holds for a set of kernels, or ``None``."""
        return next((fitted(record) for record in self.records if record.kernels == kernels), None)

    def of_run(self, key: str) -> list[tuple[dict[str, Any], "Calibration"]]:
        """What a run was measured with, each with a calibration by that measurement alone.

        Of several with one execution the last one counts, and it comes first where kernels are the same.
        """
        found: list[tuple[dict[str, Any], Calibration]] = []
        for record in self.records:
            for measurement in reversed(record.measurements):
                if measurement.of_run == key and all(limits != measurement.limits for limits, _ in found):
                    alone = structs.replace(record, measurements=(measurement,))
                    found.append((measurement.limits, Calibration(records=(alone,))))
        return found


def machine_of(report: HardwareReport) -> Machine | None:
    """The machine as a key; ``None`` without a card."""
    if not report.cuda_gpus:
        return None
    gpu, packages = report.cuda_gpus[0], {name.lower(): version for name, version in report.packages.items()}
    return Machine(
        gpu=gpu.name,
        driver=gpu.driver or report.cuda_driver,
        torch=report.torch.version,
        bitsandbytes=packages.get("bitsandbytes"),
    )
