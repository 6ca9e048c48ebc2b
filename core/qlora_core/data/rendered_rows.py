"""Rows that hold a rendered chat template already: wrapped once more they teach two end tokens."""

import re
from collections import Counter
from collections.abc import Collection, Iterable

from qlora_core.data.chat.template_families import TEMPLATE_FAMILIES
from qlora_core.data.schema import Conversation, Message

MARKERS = (
    *dict.fromkeys(token for family in TEMPLATE_FAMILIES.values() for token in family.needs),
    *(
        "<|system|>",
        "<|im_sep|>",
        "<|endoftext|>",
        "<|eot|>",
        "<|header_start|>",
        "<|end_of_text|>",
        "<|begin_of_text|>",
    ),
    *("[INST]", "[/INST]", "<<SYS>>", "[SYSTEM_PROMPT]", "<|turn>", "<|start|>", "<|channel|>", "<|message|>"),
    *(
        "<|START_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        "<｜User｜>",
        "<｜Assistant｜>",
        "<|EOT|>",
        "<|end_of_role|>",
    ),
    *("<reserved_106>", "<_user>", "<_bot>", "<|im_user|>", "<|im_assistant|>", "[|Human|]", "<extra_id_1>User"),
)
"""What templates write around turns, of the families here and of others."""
PAIRS = (("### Instruction:", "### Response:"), ("### Human:", "### Assistant:"), ("USER:", "ASSISTANT:"))
"""Words that are a template's only where both stand in one text."""
SHOWN = 4
IMAGE = "<image>"
PICTURED = f"{{}} {IMAGE} where a picture was: this trains on text only, and that word is kept as text"


def rendered_warnings(conversations: Iterable[Conversation], special_tokens: Collection[str] = ()) -> list[str]:
    """A warning where contents of messages hold turn markers, or special tokens of the model's tokenizer."""
    signs = sorted({*MARKERS, *(token for token in special_tokens if len(token) > 2)}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, signs)))
    rows, pictured, found = 0, 0, Counter[str]()
    for conversation in conversations:
        marks = {mark for message in conversation.messages for mark in _marks(message.content, pattern)}
        rows += bool(marks)
        pictured += any(map(_holds_placeholder, conversation.messages))
        found.update(marks)
    pictures = [PICTURED.format("1 row holds" if pictured == 1 else f"{pictured:,} rows hold")] if pictured else []
    if not rows:
        return pictures
    said = ", ".join(mark for mark, _ in found.most_common(SHOWN))
    hold = "1 row holds" if rows == 1 else f"{rows:,} rows hold"
    return [
        *pictures,
        f"{hold} a rendered template already ({said}): it is wrapped in another one and learned so; "
        "take the markers out, or put each whole text into a column of its own: --field text=COLUMN",
    ]


def _holds_placeholder(message: Message) -> bool:
    content = message.content.strip() if IMAGE in message.content else ""
    return content.startswith(IMAGE) or content.endswith(IMAGE)


def _marks(content: str, pattern: re.Pattern[str]) -> set[str]:
    marks = set(pattern.findall(content)) if "<" in content or "[" in content else set()
    marks.update(first for first, second in PAIRS if first in content and second in content)
    return marks
