"""Whether a build of torch has code for a card, by torch's own list of architectures."""

from collections.abc import Iterable


def has_code_for(capability: tuple[int, int], architectures: Iterable[str]) -> bool:
    """Compiled code of the same major version and an equal or lower minor one, or PTX that the driver compiles."""
    return any(_runs_on(capability, *name.split("_", 1)) for name in architectures if "_" in name)


def _runs_on(capability: tuple[int, int], kind: str, number: str) -> bool:
    """``sm`` and ``86``, or ``compute`` and ``90a``."""
    digits = "".join(c for c in number if c.isdigit())
    if not digits:
        return False
    version = divmod(int(digits), 10)
    if kind == "compute":
        return version <= capability
    return version[0] == capability[0] and version[1] <= capability[1]
