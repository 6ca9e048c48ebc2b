"""Wishes that only count together: batch x accumulation, and the switches that choose a method."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from qlora_profiles.errors import UserError


class Part(Struct, frozen=True, kw_only=True):
    """One written wish: its foreign ``name``, the name and place as written, the value read and the raw one."""

    name: str
    label: str
    value: Any
    raw: Any = None
    place: str = ""


class Whole(Struct, frozen=True, kw_only=True):
    """A setting put together from its parts."""

    value: Any
    reason: str
    note: str = ""


PARTS: dict[str, str] = {
    "batch": "examples_per_step",
    "accumulation": "examples_per_step",
    "use_lora": "method",
    "use_qlora": "method",
    "bits": "method",
    "load_in_4bit": "method",
    "load_in_8bit": "method",
}
"""Part -> the setting that it is a part of."""

LASTING = ("examples_per_step",)
"""Settings whose parts may come from different places: a command line's batch x a config file's accumulation."""

ASSUMED_BATCH = 1
ASSUMED_ACCUMULATION = 16
ACCUMULATION_OF = {"batch_size": 4}
"""What scripts take for the accumulation when only the batch is given: mostly 16, those with ``batch_size`` 4."""


def put_together(setting: str, parts: Mapping[str, Part]) -> Whole:
    """The value of ``setting`` from its parts (part -> written wish).

    Raises:
        UserError: the parts contradict each other; names both.
    """
    return _WHOLES[setting](parts)


def _examples_per_step(parts: Mapping[str, Part]) -> Whole:
    batch, accumulation = parts.get("batch"), parts.get("accumulation")
    rows = batch.value if batch else ASSUMED_BATCH
    assumed = ACCUMULATION_OF.get(batch.name if batch else "", ASSUMED_ACCUMULATION)
    times = accumulation.value if accumulation else assumed
    reason = f"your batch {rows} x accumulation {times}"
    given = batch or accumulation
    if given is None or (batch and accumulation):
        return Whole(value=rows * times, reason=reason)
    missing = f"accumulation {times}" if batch else f"batch {rows}"
    note = f"{given.label} {given.value} alone: read with {missing}, so {rows * times} examples per step"
    return Whole(value=rows * times, reason=f"{reason} ({missing} assumed)", note=note)


def _method(parts: Mapping[str, Part]) -> Whole:
    bits, loose = _bits(parts)
    use_lora, use_qlora = parts.get("use_lora"), parts.get("use_qlora")
    if bits and use_lora and not use_lora.value and not use_qlora:
        raise UserError(f"{use_lora.label} {use_lora.raw}: training everything needs an unquantised base", _DROP)
    value = f"qlora-{bits}" if bits else "full" if use_lora and not use_lora.value else "lora"
    reason = "your " + ", ".join(f"{part.label} {_shown(part.raw)}" for part in parts.values())
    note = f"{loose.label} {loose.raw} counts only with quantisation switched on" if loose else ""
    return Whole(value=value, reason=reason, note=note)


_DROP = "remove one of them"


def _bits(parts: Mapping[str, Part]) -> tuple[int | None, Part | None]:
    """(bits of the base or None, a part that counts for nothing). Raises UserError on a contradiction."""
    said = {bits: parts[f"load_in_{bits}bit"] for bits in (4, 8) if _is_true(parts.get(f"load_in_{bits}bit"))}
    use_qlora, number = parts.get("use_qlora"), parts.get("bits")
    if len(said) == 2:
        raise _contradiction(*said.values())
    loaded = next(iter(said), None)
    if use_qlora and not use_qlora.value:
        if loaded:
            raise _contradiction(use_qlora, said[loaded])
        return None, number
    if number and loaded and number.value != loaded:
        raise _contradiction(number, said[loaded])
    return (number.value if number else loaded or (4 if use_qlora else None)), None


def _is_true(part: Part | None) -> bool:
    return part is not None and bool(part.value)


def _contradiction(one: Part, other: Part) -> UserError:
    return UserError(f"{one.label} {_shown(one.raw)} contradicts {other.label} {_shown(other.raw)}", _DROP)


def _shown(raw: Any) -> str:
    return str(raw).lower() if isinstance(raw, bool) else str(raw)


_WHOLES: dict[str, Callable[[Mapping[str, Part]], Whole]] = {
    "examples_per_step": _examples_per_step,
    "method": _method,
}
