"""Which cards CUDA numbers, and how: ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` as the driver reads them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Card:
    """A card as NVML lists it (by PCI bus). ``instances``: UUIDs of its MIG instances; ``None`` when MIG is off."""

    uuid: str | None
    name: str | None = None
    instances: tuple[str | None, ...] | None = None


class Pick(NamedTuple):
    """A card, or one MIG instance of it, by position."""

    card: int
    instance: int | None = None


class Selection(NamedTuple):
    """What CUDA numbers 0, 1, ...; ``reason`` tells why that is less than was asked for."""

    picks: tuple[Pick, ...]
    reason: str | None = None


def select(text: str | None, cards: Sequence[Card]) -> Selection:
    """The cards that ``CUDA_VISIBLE_DEVICES`` leaves, in CUDA's order. ``None``: not set.

    The first entry that names no card ends the list; a card named twice empties it. CUDA numbers a single MIG
    instance, and no whole card beside it.
    """
    chosen = _all(cards) if text is None else _listed(text, cards)
    sliced = [pick for pick in chosen.picks if pick.instance is not None]
    if not sliced or len(chosen.picks) == 1:
        return chosen
    return Selection((sliced[0],), "MIG is on: CUDA numbers one instance; choose with CUDA_VISIBLE_DEVICES=MIG-<uuid>")


def _all(cards: Sequence[Card]) -> Selection:
    found = [_whole(position, card) for position, card in enumerate(cards)]
    reason = "MIG is on but a card has no instance; CUDA leaves it out" if None in found else None
    return Selection(tuple(pick for pick in found if pick), reason)


def _listed(text: str, cards: Sequence[Card]) -> Selection:
    shown = f"CUDA_VISIBLE_DEVICES={text}"
    picks: list[Pick] = []
    form = _form(text.strip())
    for entry in (part.strip() for part in text.split(",")):
        pick = _find(entry, cards) if _form(entry) == form else None
        if pick is None:
            named = f"entry {entry!r} names no card" if entry else "an empty entry"
            return Selection(tuple(picks), f"{shown}: {named}, which ends the list")
        if pick in picks:
            return Selection((), f"{shown}: names a card twice, which hides them all")
        picks.append(pick)
    return Selection(tuple(picks))


def _form(entry: str) -> str:
    """How an entry names a card; CUDA does not mix the forms in one list."""
    return entry[:4] if entry.startswith(("GPU-", "MIG-")) else "index"


def _find(entry: str, cards: Sequence[Card]) -> Pick | None:
    """The card that one entry names; a UUID may be cut short as long as one card alone begins so."""
    if _form(entry) == "index":
        number = re.match(r"\+?([0-9]+)", entry)
        position = int(number[1]) if number else len(cards)
        return _whole(position, cards[position]) if position < len(cards) else None
    matches = [pick for pick, uuid in _uuids(cards) if uuid is not None and uuid.startswith(entry)]
    if len(matches) != 1:
        return None
    return matches[0] if matches[0].instance is not None else _whole(matches[0].card, cards[matches[0].card])


def _uuids(cards: Sequence[Card]) -> list[tuple[Pick, str | None]]:
    wholes = [(Pick(position), card.uuid) for position, card in enumerate(cards)]
    slices = [
        (Pick(position, part), uuid)
        for position, card in enumerate(cards)
        for part, uuid in enumerate(card.instances or ())
    ]
    return wholes + slices


def _whole(position: int, card: Card) -> Pick | None:
    """The card itself, its first instance when MIG is on, nothing when MIG is on without an instance."""
    if card.instances is None:
        return Pick(position)
    return Pick(position, 0) if card.instances else None


def order_doubt(text: str | None, order: str | None, cards: Sequence[Card]) -> str | None:
    """Why CUDA may number the cards otherwise than NVML; ``None`` when both orders agree.

    By default CUDA puts the fastest card first and leaves the rest open; NVML goes by PCI bus.
    """
    by_uuid = text is not None and text.strip().startswith(("GPU-", "MIG-"))
    if order == "PCI_BUS_ID" or by_uuid or len({card.name for card in cards}) < 2:
        return None
    return "cards differ: CUDA may number the fastest first, not by bus as here; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
