"""Values that only count together: batch x accumulation, and the switches that choose a method."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from qlora_profiles.alias import shown
from qlora_profiles.errors import UserError
from qlora_profiles.plan import Given, Source, Written

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


def put_together(setting: str, parts: Mapping[str, Given], source: Source) -> Given:
    """The value of ``setting`` from its parts (part -> what was given for it).

    Raises:
        UserError: the parts contradict each other; names both.
    """
    whole = _WHOLES[setting](parts)
    label = " and ".join(_label(part) for part in parts.values())
    written = Written(name=setting, raw=f"({setting} {whole.value})", label=label)
    return Given(value=whole.value, source=source, reason=whole.reason, note=whole.note, written=written)


class _Whole(NamedTuple):
    value: int | str
    reason: str
    note: str = ""


def _examples_per_step(parts: Mapping[str, Given]) -> _Whole:
    batch, accumulation = parts.get("batch"), parts.get("accumulation")
    rows = batch.value if batch else ASSUMED_BATCH
    assumed = ACCUMULATION_OF.get(batch.written.name if batch else "", ASSUMED_ACCUMULATION)
    times = accumulation.value if accumulation else assumed
    whose = "the recipe's" if {part.source for part in parts.values()} == {"recipe"} else "your"
    reason = f"{whose} batch {rows} x accumulation {times}"
    alone = batch or accumulation
    if alone is None or (batch and accumulation):
        return _Whole(rows * times, reason)
    missing = f"accumulation {times}" if batch else f"batch {rows}"
    note = f"{_label(alone)} {alone.value} alone: read with {missing}, so {rows * times} examples per step"
    return _Whole(rows * times, f"{reason} ({missing} assumed)", note)


def _method(parts: Mapping[str, Given]) -> _Whole:
    bits, loose = _bits(parts)
    use_lora, use_qlora = parts.get("use_lora"), parts.get("use_qlora")
    if bits and use_lora and not use_lora.value and not use_qlora:
        text = f"{_label(use_lora)} {use_lora.written.raw}: training everything needs an unquantised base"
        raise UserError(text, _DROP)
    value = f"qlora-{bits}" if bits else "full" if use_lora and not use_lora.value else "lora"
    reason = "your " + ", ".join(_words(part) for part in parts.values())
    note = f"{_label(loose)} {loose.written.raw} counts only with quantisation switched on" if loose else ""
    return _Whole(value, reason, note)


_DROP = "remove one of them"


def _bits(parts: Mapping[str, Given]) -> tuple[int | None, Given | None]:
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


def _is_true(part: Given | None) -> bool:
    return part is not None and bool(part.value)


def _contradiction(one: Given, other: Given) -> UserError:
    return UserError(f"{_words(one)} contradicts {_words(other)}", _DROP)


def _words(part: Given) -> str:
    return f"{_label(part)} {shown(part.written.raw)}"


def _label(part: Given) -> str:
    return part.written.label.lstrip("-")


_WHOLES: dict[str, Callable[[Mapping[str, Given]], _Whole]] = {
    "examples_per_step": _examples_per_step,
    "method": _method,
}
