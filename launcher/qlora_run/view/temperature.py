"""The card's temperature, read beside the run."""

from collections.abc import Callable

from qlora_profiles.hardware import HardwareReport


def gpu_thermometer(report: HardwareReport) -> Callable[[], int | None]:
    """Reads the first CUDA card's temperature in degrees Celsius; ``None`` wherever that cannot be."""
    uuid = next((gpu.uuid for gpu in report.cuda_gpus), None)
    if uuid is None:
        return lambda: None
    import pynvml

    def read() -> int | None:
        try:
            return int(pynvml.nvmlDeviceGetTemperature(pynvml.nvmlDeviceGetHandleByUUID(uuid), 0))
        except pynvml.NVMLError:
            return None

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return lambda: None
    return read
