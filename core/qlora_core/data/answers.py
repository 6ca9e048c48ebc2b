"""Answers that are learned and hardly say anything."""

from collections import Counter
from collections.abc import Iterable
from unicodedata import east_asian_width

from msgspec import Struct

from qlora_core.data.schema import Conversation

SHORT_WIDTH = 10
"""An answer of at most so many letters is short; a Chinese sign counts as two."""
SHOWN = 5


class ShortAnswer(Struct, frozen=True, kw_only=True):
    """A short answer, and how often it is learned."""

    text: str
    count: int


class Answers(Struct, frozen=True, kw_only=True):
    """Learned answers: ``count`` in all, so many ``short`` ones with the most frequent, and so many ``wordless``:
    without any letter or digit, and without a call."""

    count: int
    short: int
    wordless: int
    most_frequent_short: tuple[ShortAnswer, ...]


def measure_answers(conversations: Iterable[Conversation]) -> Answers:
    """What the assistant's learned messages amount to; those that call tools are not short."""
    count, wordless, short = 0, 0, Counter[str]()
    for conversation in conversations:
        for message in conversation.messages:
            if message.role != "assistant" or not message.supervised:
                continue
            count += 1
            text = message.content.strip()
            if message.tool_calls or _is_long(text):
                continue
            short[text] += 1
            wordless += not any(map(str.isalnum, text))
    frequent = tuple(ShortAnswer(text=text, count=times) for text, times in short.most_common(SHOWN))
    return Answers(count=count, short=short.total(), wordless=wordless, most_frequent_short=frequent)


def _is_long(text: str) -> bool:
    return len(text) > SHORT_WIDTH or sum(1 + (east_asian_width(sign) in "WF") for sign in text) > SHORT_WIDTH
