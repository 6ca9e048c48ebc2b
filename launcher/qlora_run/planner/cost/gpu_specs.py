"""What cards can do by name: from NVIDIA's data sheets and architecture whitepapers, rounded."""

import re
from typing import NamedTuple

from qlora_profiles.hardware import Gpu


class GpuSpecs(NamedTuple):
    """Dense 16-bit tensor throughput with float32 accumulation (TFLOP/s) and memory bandwidth (GB/s).

    Cards without tensor cores count with their other units. ``listed`` is false where the card is not in the table and
    its generation stands in.
    """

    tflops: float
    bandwidth_gbs: float
    listed: bool = True


GPU_SPECS: tuple[tuple[str, GpuSpecs], ...] = (
    ("b300", GpuSpecs(2250, 8000)),
    ("b200", GpuSpecs(2250, 8000)),
    ("gh200", GpuSpecs(989, 4000)),
    ("h200", GpuSpecs(989, 4800)),
    ("h100 nvl", GpuSpecs(835, 3900)),
    ("h100 pcie", GpuSpecs(756, 2000)),
    ("h100", GpuSpecs(989, 3350)),
    ("h800", GpuSpecs(989, 3350)),
    ("h20", GpuSpecs(148, 4000)),
    ("a100 80gb", GpuSpecs(312, 1935)),
    ("a100-sxm4-80gb", GpuSpecs(312, 2039)),
    ("a100", GpuSpecs(312, 1555)),
    ("a800", GpuSpecs(312, 1935)),
    ("a30", GpuSpecs(165, 933)),
    ("a10g", GpuSpecs(70, 600)),
    ("a10", GpuSpecs(125, 600)),
    ("a40", GpuSpecs(150, 696)),
    ("l40s", GpuSpecs(362, 864)),
    ("l40", GpuSpecs(181, 864)),
    ("l4", GpuSpecs(121, 300)),
    ("t4", GpuSpecs(35, 320)),  # 65 on paper; 70 W do not last for that: a guess
    ("v100", GpuSpecs(125, 900)),
    ("p100", GpuSpecs(19, 732)),
    ("rtx pro 6000", GpuSpecs(500, 1792)),
    ("rtx 6000 ada", GpuSpecs(364, 960)),
    ("rtx 5000 ada", GpuSpecs(261, 576)),
    ("rtx 4500 ada", GpuSpecs(158, 432)),
    ("rtx 4000 ada", GpuSpecs(107, 360)),
    ("rtx a6000", GpuSpecs(155, 768)),
    ("rtx a5000", GpuSpecs(111, 768)),
    ("rtx a4000", GpuSpecs(77, 448)),
    ("rtx a2000", GpuSpecs(32, 288)),
    ("quadro rtx 8000", GpuSpecs(131, 672)),
    ("quadro rtx 6000", GpuSpecs(131, 672)),
    ("titan rtx", GpuSpecs(65, 672)),
    ("rtx 5090", GpuSpecs(210, 1792)),
    ("rtx 5080", GpuSpecs(113, 960)),
    ("rtx 5070 ti", GpuSpecs(88, 896)),
    ("rtx 5070", GpuSpecs(62, 672)),
    ("rtx 5060 ti", GpuSpecs(47, 448)),
    ("rtx 5060", GpuSpecs(38, 448)),
    ("rtx 5050", GpuSpecs(26, 320)),
    ("rtx 4090", GpuSpecs(165, 1008)),
    ("rtx 4080 super", GpuSpecs(104, 736)),
    ("rtx 4080", GpuSpecs(97, 717)),
    ("rtx 4070 ti super", GpuSpecs(88, 672)),
    ("rtx 4070 ti", GpuSpecs(80, 504)),
    ("rtx 4070 super", GpuSpecs(71, 504)),
    ("rtx 4070", GpuSpecs(58, 504)),
    ("rtx 4060 ti", GpuSpecs(44, 288)),
    ("rtx 4060", GpuSpecs(30, 272)),
    ("rtx 4050", GpuSpecs(25, 192)),
    ("rtx 3090 ti", GpuSpecs(80, 1008)),
    ("rtx 3090", GpuSpecs(71, 936)),
    ("rtx 3080 ti", GpuSpecs(68, 912)),
    ("rtx 3080", GpuSpecs(60, 760)),
    ("rtx 3070 ti", GpuSpecs(43, 608)),
    ("rtx 3070", GpuSpecs(41, 448)),
    ("rtx 3060 ti", GpuSpecs(32, 448)),
    ("rtx 3060", GpuSpecs(25, 360)),
    ("rtx 3050", GpuSpecs(18, 224)),
    ("rtx 2080 ti", GpuSpecs(54, 616)),
    ("rtx 2080 super", GpuSpecs(45, 496)),
    ("rtx 2080", GpuSpecs(40, 448)),
    ("rtx 2070 super", GpuSpecs(36, 448)),
    ("rtx 2070", GpuSpecs(30, 448)),
    ("rtx 2060", GpuSpecs(26, 336)),
    ("gtx 1660", GpuSpecs(10, 288)),
    ("gtx 1650", GpuSpecs(6, 192)),
    ("gtx 1080 ti", GpuSpecs(11, 484)),
    ("gtx 1080", GpuSpecs(9, 320)),
    ("gtx 1070", GpuSpecs(6.5, 256)),
)
"""(part of the name in lower case, card); the first that matches counts, so longer names come first."""

BY_CAPABILITY: tuple[tuple[tuple[int, int], GpuSpecs], ...] = (
    ((12, 0), GpuSpecs(60, 500, listed=False)),
    ((10, 0), GpuSpecs(1500, 6000, listed=False)),
    ((9, 0), GpuSpecs(700, 3000, listed=False)),
    ((8, 9), GpuSpecs(50, 400, listed=False)),
    ((8, 6), GpuSpecs(35, 400, listed=False)),
    ((8, 0), GpuSpecs(250, 1500, listed=False)),
    ((7, 0), GpuSpecs(25, 300, listed=False)),
    ((0, 0), GpuSpecs(6, 200, listed=False)),
)
"""A middling card of each generation, set by hand, for cards that are not in the table."""

LAPTOP_SHARE, LAPTOP_BANDWIDTH_SHARE = 0.6, 0.8
"""A laptop's card carries the name of a desktop card and less of everything: a guess, as its power differs by maker."""


def specs_of(gpu: Gpu) -> GpuSpecs:
    """The data sheet of a card by its name, or a middling card of its generation (``listed`` is false then)."""
    name = re.sub(r"[\s_]+", " ", gpu.name.lower())
    for pattern, card in GPU_SPECS:
        if re.search(rf"\b{re.escape(pattern)}\b", name):
            return _laptop(card) if "laptop" in name or "max-q" in name else card
    capability = gpu.capability or (0, 0)
    return next(card for lowest, card in BY_CAPABILITY if capability >= lowest)


def _laptop(card: GpuSpecs) -> GpuSpecs:
    return GpuSpecs(card.tflops * LAPTOP_SHARE, card.bandwidth_gbs * LAPTOP_BANDWIDTH_SHARE)
