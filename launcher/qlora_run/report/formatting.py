"""Numbers, times and names as a person reads them."""

import math
import re
import time
from pathlib import Path
from typing import Any

from qlora_profiles.registry import settings
from qlora_profiles.units import GIB, MIB, human_bytes, human_seconds


def loss_text(loss: float) -> str:
    """A loss with two decimals, more where it is small."""
    return f"{loss:.2f}" if not math.isfinite(loss) or loss >= 0.1 else f"{loss:.2g}"


def number(value: float) -> str:
    """A number as people write it: ``0.05``, ``2e-4``, ``12,000``."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e6:
        return f"{value:g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def clock(time_s: float) -> str:
    """Local time of day, ``17:42``."""
    return time.strftime("%H:%M", time.localtime(time_s))


def end_clock(now_s: float, seconds_left: float) -> str:
    """When it ends: ``17:42``, with the day when it is not today."""
    end = time.localtime(now_s + seconds_left)
    return time.strftime("%H:%M" if time.localtime(now_s)[:3] == end[:3] else "%d %b %H:%M", end)


def ends_at(now_s: float, seconds_left: float) -> str:
    """``17:42 (38 min)``."""
    return f"{end_clock(now_s, seconds_left)} ({human_seconds(seconds_left)})"


def time_range(low_s: float, high_s: float) -> str:
    """Two durations as one range: ``62-80 min``."""
    low, high = human_seconds(low_s), human_seconds(high_s)
    if low == high:
        return high
    return f"{low.split()[0]}-{high}" if low.split()[1] == high.split()[1] else f"{low} to {high}"


def size_unit(largest_bytes: float) -> tuple[int, str]:
    """The unit in which a group of sizes is read: GiB, or MiB when all are small."""
    return (GIB, "GiB") if largest_bytes >= GIB else (MIB, "MiB")


def in_unit(count_bytes: float, unit_bytes: int) -> str:
    """Bytes in a unit: one decimal for GiB, none for MiB."""
    return f"{count_bytes / unit_bytes:.{1 if unit_bytes == GIB else 0}f}"


def option(name: str) -> str:
    """A setting as it is typed, without the leading dashes: ``lora-r``."""
    return name.replace("_", "-")


def value_text(name: str, value: Any) -> str:
    """A setting's value for a table."""
    unit = settings()[name].doc.unit if name in settings() else ""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(str(v) for v in value) or "none"
    if unit == "bytes":
        return human_bytes(value)
    return number(value) if isinstance(value, int | float) and name != "seed" else str(value)


def one_line(text: str) -> str:
    """Foreign text made safe for a line: no line breaks, no control or escape characters."""
    text = re.sub(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)?|.)", "", text)
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def shown_path(path: str | Path) -> str:
    """A path as short as it can be typed here: relative when it lies below the current folder."""
    full = Path(path)
    here = Path.cwd()
    return full.relative_to(here).as_posix() if full.is_absolute() and full.is_relative_to(here) else str(path)


def quoted(word: str) -> str:
    """A word of a command line; quotes that cmd, PowerShell and POSIX shells all read alike."""
    return word if re.fullmatch(r"[\w@%+=:,./\\-]+", word) else '"' + word.replace('"', '\\"') + '"'
