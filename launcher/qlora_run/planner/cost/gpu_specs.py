"""What cards can do, from their makers' data sheets, by name."""

import re
from typing import NamedTuple

from qlora_profiles.hardware import Gpu


class Card(NamedTuple):
    """Dense 16-bit tensor throughput with float32 accumulation (TFLOP/s) and memory bandwidth (GB/s).

    ``listed`` is false where the card is not in the table and its generation stands in.
    """

    tflops: float
    bandwidth_gbs: float
    listed: bool = True


CARDS: tuple[tuple[str, Card], ...] = (
    ("b300", Card(2250, 8000)),
    ("b200", Card(2250, 8000)),
    ("gh200", Card(989, 4000)),
    ("h200", Card(989, 4800)),
    ("h100 nvl", Card(835, 3900)),
    ("h100 pcie", Card(756, 2000)),
    ("h100", Card(989, 3350)),
    ("h800", Card(989, 3350)),
    ("h20", Card(148, 4000)),
    ("a100 80gb", Card(312, 1935)),
    ("a100-sxm4-80gb", Card(312, 2039)),
    ("a100", Card(312, 1555)),
    ("a800", Card(312, 1935)),
    ("a30", Card(165, 933)),
    ("a10g", Card(70, 600)),
    ("a10", Card(125, 600)),
    ("a40", Card(150, 696)),
    ("l40s", Card(362, 864)),
    ("l40", Card(181, 864)),
    ("l4", Card(121, 300)),
    ("t4", Card(35, 320)),  # 65 on paper; 70 W do not last for that
    ("v100", Card(125, 900)),
    ("p100", Card(19, 732)),
    ("rtx pro 6000", Card(500, 1792)),
    ("rtx 6000 ada", Card(364, 960)),
    ("rtx 5000 ada", Card(261, 576)),
    ("rtx 4500 ada", Card(158, 432)),
    ("rtx 4000 ada", Card(107, 360)),
    ("rtx a6000", Card(155, 768)),
    ("rtx a5000", Card(111, 768)),
    ("rtx a4000", Card(77, 448)),
    ("rtx a2000", Card(32, 288)),
    ("quadro rtx 8000", Card(131, 672)),
    ("quadro rtx 6000", Card(131, 672)),
    ("titan rtx", Card(65, 672)),
    ("rtx 5090", Card(210, 1792)),
    ("rtx 5080", Card(113, 960)),
    ("rtx 5070 ti", Card(88, 896)),
    ("rtx 5070", Card(62, 672)),
    ("rtx 5060 ti", Card(47, 448)),
    ("rtx 5060", Card(38, 448)),
    ("rtx 5050", Card(26, 320)),
    ("rtx 4090", Card(165, 1008)),
    ("rtx 4080 super", Card(104, 736)),
    ("rtx 4080", Card(97, 717)),
    ("rtx 4070 ti super", Card(88, 672)),
    ("rtx 4070 ti", Card(80, 504)),
    ("rtx 4070 super", Card(71, 504)),
    ("rtx 4070", Card(58, 504)),
    ("rtx 4060 ti", Card(44, 288)),
    ("rtx 4060", Card(30, 272)),
    ("rtx 4050", Card(25, 192)),
    ("rtx 3090 ti", Card(80, 1008)),
    ("rtx 3090", Card(71, 936)),
    ("rtx 3080 ti", Card(68, 912)),
    ("rtx 3080", Card(60, 760)),
    ("rtx 3070 ti", Card(43, 608)),
    ("rtx 3070", Card(41, 448)),
    ("rtx 3060 ti", Card(32, 448)),
    ("rtx 3060", Card(25, 360)),
    ("rtx 3050", Card(18, 224)),
    ("rtx 2080 ti", Card(54, 616)),
    ("rtx 2080 super", Card(45, 496)),
    ("rtx 2080", Card(40, 448)),
    ("rtx 2070 super", Card(36, 448)),
    ("rtx 2070", Card(30, 448)),
    ("rtx 2060", Card(26, 336)),
    ("gtx 1660", Card(10, 288)),
    ("gtx 1650", Card(6, 192)),
    ("gtx 1080 ti", Card(11, 484)),
    ("gtx 1080", Card(9, 320)),
    ("gtx 1070", Card(6.5, 256)),
)
"""(part of the name in lower case, card); the first that matches counts, so longer names come first."""

BY_CAPABILITY: tuple[tuple[tuple[int, int], Card], ...] = (
    ((12, 0), Card(60, 500, listed=False)),
    ((10, 0), Card(1500, 6000, listed=False)),
    ((9, 0), Card(700, 3000, listed=False)),
    ((8, 9), Card(50, 400, listed=False)),
    ((8, 6), Card(35, 400, listed=False)),
    ((8, 0), Card(250, 1500, listed=False)),
    ((7, 0), Card(25, 300, listed=False)),
    ((0, 0), Card(6, 200, listed=False)),
)
"""A middling card of each generation, for cards that are not in the table."""

LAPTOP_SHARE = 0.6
"""A laptop's card carries the name of a desktop card and less of everything."""


def card_of(gpu: Gpu) -> Card:
    """The data sheet of a card, or its generation's."""
    name = re.sub(r"[\s_]+", " ", gpu.name.lower())
    for pattern, card in CARDS:
        if re.search(rf"\b{re.escape(pattern)}\b", name):
            return _laptop(card) if "laptop" in name or "max-q" in name else card
    capability = gpu.capability or (0, 0)
    return next(card for lowest, card in BY_CAPABILITY if capability >= lowest)


def _laptop(card: Card) -> Card:
    return Card(card.tflops * LAPTOP_SHARE, card.bandwidth_gbs * 0.8)
