"""Sizes as people type and read them."""

import re

KIB, MIB, GIB = 2**10, 2**20, 2**30
_UNITS = {"": 1, "b": 1, "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB, "t": 2**40, "tib": 2**40}
_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def parse_bytes(text: str) -> int:
    """Bytes from ``"12GiB"``, ``"12g"``, ``"11.5 GiB"``, ``"12GB"`` (decimal).

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    factor = (_UNITS | _DECIMAL).get(match[2].lower()) if match else None
    if not match or factor is None:
        raise ValueError(f"{text!r} is no size; write it like 12GiB")
    return int(float(match[1]) * factor)


def gib(count: float, digits: int = 1) -> str:
    """Bytes as a number of GiB, unit left to the caller: ``"11.2"``."""
    return f"{count / GIB:.{digits}f}"


def in_gib(count: float) -> str:
    """Bytes as ``11.2 GiB``, however many they are."""
    return f"{gib(count)} GiB"


def human_bytes(count: float) -> str:
    """Bytes with the unit that keeps the number short: ``84 MB``-like, in binary units."""
    for factor, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def human_seconds(seconds: float) -> str:
    """A duration as a person says it: ``45 s``, ``12 min``, ``3.5 h``, ``19 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
