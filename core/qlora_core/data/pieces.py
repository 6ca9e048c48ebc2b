"""Where a text can be cut so that its pieces have, one by one, the very tokens of the whole.

Counting tokens that way needs each distinct piece encoded once, and people repeat their words. A cut is a single
space between two characters that are no white space. It is sound where

- the tokenizer looks for its words with a pattern none of whose alternatives takes a space behind anything but
  white space, so that a word always ends in front of such a space; none looks further than white space reaches; and
  every white space is taken by one of them, so that no gap between words holds the space;
- nothing that comes before that pattern joins or changes characters across a space: no added token holds one or
  eats it, and of the normalizers only NFC, for which a space is never a part of another character.

Whatever comes behind the pattern sees single words, and so does the same to them.
"""

import json
import re
from collections.abc import Collection
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED = (rf"[{_UPPER}]*[{_LOWER}]+", rf"[{_UPPER}]+[{_LOWER}]*")
_ALTERNATIVES = (
    *(_ENDINGS, r"'(?i:[sdmt]|ll|ve|re)", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d"),
    *(r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"),
    *(rf"[^\r\n\p{{L}}\p{{N}}]?{word}{ending}" for word, ending in product(_CASED, ("", f"{_ENDINGS}?"))),
    *(r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", r" ?\p{N}+"),
    *(rf" ?[^\s\p{{L}}\p{{N}}]+{breaks}" for breaks in ("", r"[\r\n]*", r"[\r\n/]*")),
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    *(r"\s*[\r\n]+", r"\s*[\r\n]", r"\s+(?!\S)", r"\s+"),
)
"""What the word patterns of GPT-2, Llama 3, Qwen, GPT-4o, Phi-4 and Tekken are made of."""
_ONE = f"(?:{'|'.join(map(re.escape, _ALTERNATIVES))})"
_KNOWN = re.compile(rf"(?:{_ONE}\|)*{re.escape(_ALTERNATIVES[-1])}")


class Cutter:
    """Cuts texts. A piece begins with the space that it was cut at, unless it is a text's first."""

    def __init__(self, added: Collection["AddedToken"]) -> None:
        eats_right = {token.content[-1] for token in added if token.rstrip and token.content}
        eats_left = {token.content[0] for token in added if token.lstrip and token.content}
        self._cut = re.compile(rf" (?<=[^\s{_escaped(eats_right)}] )(?=[^\s{_escaped(eats_left)}])")
        self._eats = bool(eats_right or eats_left)

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Cutter | None":
        """``None`` for a tokenizer that no cut is known to be sound for."""
        added = tokenizer.get_added_tokens_decoder().values()
        sound = (
            not getattr(tokenizer.model, "dropout", None)
            and _state(tokenizer.normalizer).get("type") in (None, "NFC")
            and _parts_at_spaces(_stages(_state(tokenizer.pre_tokenizer)))
            and not any(" " in token.content for token in added)
        )
        return cls(added) if sound else None

    def piece_at(self, text: str, char: int) -> tuple[int, int]:
        """The piece [start, end) that holds a character, or the last one for the end of the text."""
        start = text.rfind(" ", 0, char + 1)
        while start > 0 and not self._cut.match(text, start):
            start = text.rfind(" ", 0, start)
        following = self._cut.search(text, char + 1)
        return max(0, start), following.start() if following else len(text)

    def words(self, text: str) -> list[str]:
        """A text that begins with a cut in pieces, all of them without their first space."""
        inner = text[1:]
        return inner.split(" ") if self._is_plain(inner) else self._cut.split(inner)

    def _is_plain(self, text: str) -> bool:
        """Whether every space is a cut, as far as that can be told fast."""
        odd = self._eats or "  " in text or "\n " in text or " \n" in text or text.endswith(" ")
        return not odd and text.replace("\n", "").isprintable()  # so there is no white space of another kind


def _escaped(letters: Collection[str]) -> str:
    return "".join(map(re.escape, sorted(letters)))


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer as its file describes it; empty where there is none."""
    return {} if part is None else dict(json.loads(part.__getstate__()))


def _stages(state: dict[str, Any]) -> list[dict[str, Any]]:
    return state["pretokenizers"] if state.get("type") == "Sequence" else [state]


def _parts_at_spaces(stages: list[dict[str, Any]]) -> bool:
    """Whether the first stage that looks at more than single digits is a word pattern that parts at spaces."""
    words = next((stage for stage in stages if stage.get("type") != "Digits"), {})
    if words.get("type") == "ByteLevel":
        return bool(words.get("use_regex"))  # the pattern of GPT-2
    keeps_words = (words.get("behavior"), words.get("invert")) in (("Isolated", False), ("Removed", True))
    pattern = words.get("pattern", {}).get("Regex") if words.get("type") == "Split" else None
    return keeps_words and pattern is not None and _KNOWN.fullmatch(pattern) is not None
