"""Did you mean: the nearest known names to one that is not known."""

import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names nearest to ``name``, best first; empty when nothing is near."""
    folded = {k.lower().replace("-", "_"): k for k in known if k != name}
    near = get_close_matches(name.lower().replace("-", "_"), list(folded), n=count, cutoff=0.6)
    return [folded[n] for n in near]


def unseen(name: str) -> str:
    """``" (holds U+200B ZERO WIDTH SPACE)"`` for letters that nobody sees or takes for others; else an empty string."""
    odd = [letter for letter in name if not letter.isascii() or not letter.isprintable()]
    if not odd or any(unicodedata.category(letter).startswith("L") and ord(letter) > 0x3000 for letter in odd):
        return ""
    named = dict.fromkeys(f"U+{ord(letter):04X} {unicodedata.name(letter, '')}".strip() for letter in odd)
    return f" (holds {', '.join(list(named)[:3])})"


def hint(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` or, when nothing is near, an empty string."""
    near = did_you_mean(name, known)
    return unseen(name) + (f"; did you mean {' or '.join(near)}?" if near else "")


def hint_beside(path: Path) -> str:
    """What is near a path that is not there: names beside it, or that it is a link whose end is gone."""
    with suppress(OSError):
        return dangling(path) or hint(path.name, [beside.name for beside in path.parent.iterdir()])
    return ""


def dangling(path: Path) -> str:
    """``": a link to X, which is not there"`` for such a one, also above ``path``; else an empty string."""
    with suppress(OSError):
        for link in (path, *path.parents):
            if link.is_symlink() and not link.exists():
                what = "a link" if link == path else f"{link} is a link"
                return f": {what} to {link.readlink()}, which is not there"
    return ""
