"""The few signs beyond ASCII that the screens use, and what stands in for them on other consoles."""

import codecs
import math
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from msgspec import Struct

_TO_ASCII = str.maketrans(
    {
        "·": "|",
        "±": "+/-",
        "×": "x",
        "≥": ">=",
        "≤": "<=",
        "≈": "~",
        "→": "->",
        "–": "-",
        "—": "-",
        "…": "...",
        "°": "",
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "\u00a0": " ",
    }
)


class Glyphs(Struct, frozen=True, kw_only=True):
    """One set of signs. ``spark`` runs from lowest to highest."""

    spark: str
    full: str
    empty: str
    ascii_only: bool

    def spell(self, text: str) -> str:
        """``text`` with our typographic signs spelled in ASCII where needed (``×`` as ``x``); other letters stay."""
        return text.translate(_TO_ASCII) if self.ascii_only else text

    def bar(self, share: float, width: int) -> str:
        """A bar of ``width`` cells, filled to ``share`` (0 to 1)."""
        filled = round(min(max(share, 0.0), 1.0) * width)
        return self.full * filled + self.empty * (width - filled)

    def sparkline(self, values: Sequence[float], width: int) -> str:
        """The course of ``values`` in at most ``width`` signs, each the mean of its stretch."""
        known = [v for v in values if math.isfinite(v)]
        count = min(width, len(known))
        edges = [round(i * len(known) / count) for i in range(count + 1)] if count else []
        means = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
        low, high = min(means, default=0.0), max(means, default=0.0)
        top = len(self.spark) - 1
        return "".join(self.spark[round((m - low) / (high - low) * top) if high > low else top // 2] for m in means)


UNICODE = Glyphs(spark="▁▂▃▄▅▆▇█", full="█", empty="░", ascii_only=False)
ASCII = Glyphs(spark="_.:-=+*#", full="#", empty=".", ascii_only=True)


def glyphs_for(stream: Any) -> Glyphs:
    """The signs that ``stream`` can carry in one cell each.

    GBK can encode most of them, but its consoles draw them two cells wide, so only Unicode encodings count.
    """
    try:
        unicode = codecs.lookup(getattr(stream, "encoding", None) or "utf-8").name.startswith("utf")
    except LookupError:
        unicode = False
    return UNICODE if unicode and _console_draws_unicode(stream) else ASCII


def _console_draws_unicode(stream: Any) -> bool:
    """Python always reports UTF-8 for a Windows console; its code page says what it can draw."""
    if sys.platform != "win32" or not stream.isatty():
        return True
    import ctypes

    modern = "WT_SESSION" in os.environ or os.environ.get("TERM_PROGRAM") == "vscode"
    return modern or ctypes.windll.kernel32.GetConsoleOutputCP() == 65001
