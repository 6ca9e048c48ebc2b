"""Conversations as JSONL rows of messages, which are read back as the same conversations."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from qlora_core.data.rows.column_names import TRAIN_KEYS
from qlora_core.data.rows.messages import REASONING_KEYS
from qlora_core.data.schema import Conversation, Message


def jsonl(conversations: Iterable[Conversation]) -> Iterator[str]:
    """One line a row, each with its line break."""
    for conversation in conversations:
        yield json.dumps(row_of(conversation), ensure_ascii=False) + "\n"


def row_of(conversation: Conversation) -> dict[str, Any]:
    """A row as JSON has it: ``messages`` and, where there are any, ``tools``; or ``text``."""
    if conversation.text is not None:
        return {"text": conversation.text}
    messages = [_message(message, conversation.supervise_all) for message in conversation.messages]
    return {"messages": messages} | ({"tools": list(conversation.tools)} if conversation.tools else {})


def _message(message: Message, supervise_all: bool) -> dict[str, Any]:
    """A message; a flag stands in it where it is not learned and others of its role are."""
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    row |= {REASONING_KEYS[0]: message.reasoning} if message.reasoning is not None else {}
    row |= {"tool_calls": list(message.tool_calls)} if message.tool_calls else {}
    named = {"name": message.name, "tool_call_id": message.tool_call_id}
    row |= {key: value for key, value in named.items() if value is not None}
    kept_out = not message.supervised and (supervise_all or message.role == "assistant")
    return row | ({TRAIN_KEYS[0]: 0} if kept_out else {})
