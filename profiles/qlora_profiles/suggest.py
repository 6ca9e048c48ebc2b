"""Did you mean: the nearest known names to one that is not known."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names nearest to ``name``, best first; empty when nothing is near."""
    folded = {k.lower().replace("-", "_"): k for k in known}
    near = get_close_matches(name.lower().replace("-", "_"), list(folded), n=count, cutoff=0.6)
    return [folded[n] for n in near]


def hint(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` or, when nothing is near, an empty string."""
    near = did_you_mean(name, known)
    return f"; did you mean {' or '.join(near)}?" if near else ""
