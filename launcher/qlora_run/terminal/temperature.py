"""The card's temperature, read beside the run."""

from collections.abc import Callable, Sequence

from qlora_profiles.hardware import Gpu


def gpu_thermometer(cards: Sequence[Gpu]) -> Callable[[], int | None]:
    """Reads the temperature of the first of ``cards`` in degrees Celsius; ``None`` wherever that cannot be."""
    uuid = next((gpu.uuid for gpu in cards), None)
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
