"""Cells that programs write where there is nothing: read as empty, or told."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from qlora_core.data.schema import Conversation

NO_VALUE = frozenset(("nan", "NaN", "NAN", "<NA>", "NaT", "-nan"))
"""What pandas writes for no value, and hardly anybody means: an empty cell."""
PERHAPS_NO_VALUE = frozenset(("None", "none", "null", "NULL", "Null", "N/A", "n/a", "#N/A", "NA", "nil", "undefined"))
"""What may be an empty cell, or an answer: told, and kept."""
LONGEST = max(map(len, NO_VALUE | PERHAPS_NO_VALUE))


class Cells:
    """Empties the cells that hold no value, and counts them by what they said."""

    def __init__(self) -> None:
        self.emptied: Counter[str] = Counter()

    def without_value(self, columns: dict[str, Any]) -> dict[str, str]:
        """The columns that hold no value, each with what it says; a number that is not a number is one, too."""
        return {
            name: str(value)
            for name, value in columns.items()
            if (type(value) is str and len(value) <= LONGEST and value.strip() in NO_VALUE)
            or (type(value) is float and value != value)
        }

    def cleaned(self, columns: dict[str, Any], empty: dict[str, str]) -> dict[str, Any]:
        """``columns`` with nothing in those of ``empty``, which are counted."""
        self.emptied.update(empty.values())
        return {name: "" if name in empty else value for name, value in columns.items()}

    def notes(self) -> list[str]:
        """How many cells were read as empty."""
        if not self.emptied:
            return []
        said = ", ".join(f'"{text}" {count:,}' for text, count in self.emptied.most_common())
        return [f"cells without a value, read as empty: {said}"]


def perhaps_empty(conversations: Iterable[Conversation]) -> list[str]:
    """A word on messages that say no more than what programs write for an empty cell; they are kept."""
    asked: Counter[str] = Counter()
    learned: Counter[str] = Counter()
    for conversation in conversations:
        for message in conversation.messages:
            text = message.content
            if len(text) <= LONGEST and text.strip() in PERHAPS_NO_VALUE | NO_VALUE:
                (learned if message.supervised else asked)[text.strip()] += 1
    told = []
    for counts, what in ((learned, "answers, which are learned"), (asked, "prompts")):
        if counts:
            said = ", ".join(f'"{text}" {count:,}' for text, count in counts.most_common(5))
            told.append(f"{what}, that look like empty cells: {said}")
    return told
