"""At most how many tokens a text has, without encoding it: the words of other texts tell.

A text is cut into words at every space behind a character that is no white space. Its words have, one by one, the
very tokens of the whole text where

- the tokenizer looks for its words with a pattern none of whose alternatives takes a space behind anything but
  white space, so that a word always ends in front of such a space; none looks further than white space reaches; and
  every white space is taken by one of them, so that no gap between words holds the space;
- nothing that comes before that pattern joins or changes characters across a space: no added token holds one or
  eats it, and of the normalizers only NFC, for which a space is never a part of another character.

Whatever comes behind the pattern sees single words, and so does the same to them. A word that was not met before has
at most as many tokens as bytes, since its tokens are byte sequences.
"""

import json
import re
from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any
from unicodedata import is_normalized

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NFC_GROWTH = 3  # most times as many bytes of UTF-8 after NFC: Unicode's FAQ on normalization (U+1D160)

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


_CUT = re.compile(r" (?<=\S )")


class TokenBounds:
    """Upper bounds of texts' tokens by the words that were counted: those of texts whose words all were are exact.

    The tokenizer must be one that ``can_bound`` is true of.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        added = sorted((token.content for token in tokenizer.get_added_tokens_decoder().values()), key=len)
        self._added = re.compile("|".join(map(re.escape, reversed(added))) or "(?!)")
        self._heads, self._words = _Counts(tokenizer, ""), _Counts(tokenizer, " ")

    def count_words(self, texts: Iterable[str]) -> None:
        """Count the tokens of the texts' words."""
        heads, words = set[str](), set[str]()
        for head, *rest in (cut for text in texts for cut in self._cut(text)):
            heads.add(head)
            words.update(rest)
        self._heads.count_words(heads)
        self._words.count_words(words)

    def upper_bound(self, text: str, enough: int = 0) -> int:
        """At most how many tokens the text has; a bound of no more than ``enough`` may be a loose one."""
        if (size := _most_bytes(text)) <= enough:
            return size
        cuts = self._cut(text)
        heads = sum(self._heads[cut[0]] for cut in cuts)
        return len(cuts) - 1 + heads + sum(sum(map(self._words.__getitem__, cut[1:])) for cut in cuts)

    def _cut(self, text: str) -> list[list[str]]:
        """What stands between the text's added tokens, in words; all but the first are without their space."""
        return [part.split(" ") if _is_plain(part) else _CUT.split(part) for part in self._added.split(text)]


class _Counts(dict[str, int]):
    """Tokens of words with a ``space`` or nothing in front, and at most how many one has that is not among them."""

    def __init__(self, tokenizer: "Tokenizer", space: str) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._space = space

    def __missing__(self, word: str) -> int:
        return len(self._space) + _most_bytes(word)

    def count_words(self, words: set[str]) -> None:
        """Count the tokens of those words that are new."""
        new = list(words.difference(self))
        encodings = self._tokenizer.encode_batch_fast([self._space + word for word in new], add_special_tokens=False)
        self.update(zip(new, map(len, encodings), strict=True))


def _most_bytes(text: str) -> int:
    """At most how many bytes the tokenizer makes of a text."""
    size = len(text.encode())
    return size if is_normalized("NFC", text) else NFC_GROWTH * size


def _is_plain(text: str) -> bool:
    """Whether every space is behind a character that is no white space, as far as that can be told fast."""
    return "  " not in text and "\n " not in text and text.replace("\n", "").isprintable()  # no other white space is


def can_bound(tokenizer: "Tokenizer") -> bool:
    """Whether the tokenizer is one of which the argument above is known to hold."""
    added = tokenizer.get_added_tokens_decoder().values()
    stages = _stages(_state(tokenizer.pre_tokenizer))
    return (
        type(tokenizer.model).__name__ == "BPE"
        and not getattr(tokenizer.model, "dropout", None)
        and _state(tokenizer.normalizer).get("type") in (None, "NFC")
        and _parts_at_spaces(stages)
        and stages[-1].get("type") == "ByteLevel"
        and not any(stage.get("add_prefix_space") for stage in stages)
        and not any(token.single_word or token.lstrip or token.rstrip or token.normalized for token in added)
        and not any(" " in token.content for token in added)
    )


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
