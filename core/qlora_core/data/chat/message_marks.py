"""Messages the way templates want them, and marks in them that a template carries through into its text."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from qlora_core.data.schema import Message

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
THINKING_ENDS = "</think>"
# Private-use characters around a number: no text that people write holds them next to each other like this
MARK = re.compile("\ue0e0([0-9]+)\ue0e1")
_THOUGHT_OPENS = re.compile(r"\s*(?:<think>)?\s*")


class Slot(NamedTuple):
    """What a mark stands for or beside: ``content``, ``reasoning`` or ``call`` of a message, or ``tools`` (message -1).

    Reasoning that was written into the content is ``thought``.
    """

    message: int
    field: str


class MarkedMessages(NamedTuple):
    """Messages for a template, and the slot of every mark in them, by its number."""

    dicts: list[dict[str, Any]]
    tools: Sequence[Mapping[str, Any]]
    slots: list[Slot]


def as_dicts(messages: Sequence[Message], *, text_arguments: bool = False) -> list[dict[str, Any]]:
    """Messages the way templates want them. Reasoning comes under every name that some template reads.

    ``text_arguments`` gives the arguments of tool calls as JSON text instead of an object.
    """
    return [_as_dict(message, text_arguments) for message in messages]


def has_reasoning(message: Message) -> bool:
    """Whether there is reasoning to write."""
    return bool(message.reasoning and message.reasoning.strip())


def cut_thought(content: str) -> tuple[str, str, str]:
    """An answer's content as what opens its thinking, the thinking, and what comes behind ``</think>``."""
    head, _, answer = content.rpartition(THINKING_ENDS)
    opens = _THOUGHT_OPENS.match(head)
    begins = opens.end() if opens else 0
    return head[:begins], head[begins:], answer


def stand_ins(messages: Sequence[Message]) -> MarkedMessages:
    """The same roles, each text replaced by a mark."""
    slots: list[Slot] = []
    replaced = []
    for number, message in enumerate(messages):
        thought = _new(slots, number, "reasoning") if has_reasoning(message) else None
        content = _new(slots, number, "content")
        replaced.append(Message(role=message.role, content=content, reasoning=thought))
    return MarkedMessages(as_dicts(replaced), (), slots)


def marked(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], wanted: Collection[int], text_arguments: bool
) -> MarkedMessages:
    """The messages themselves, with marks around each text of those whose numbers are ``wanted``."""
    slots: list[Slot] = []
    dicts = as_dicts(messages, text_arguments=text_arguments)
    for number in wanted:
        _mark_message(dicts[number], slots, number)
    return MarkedMessages(dicts, tools, slots)


def _as_dict(message: Message, text_arguments: bool) -> dict[str, Any]:
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    given |= dict.fromkeys(REASONING_KEYS, message.reasoning) if message.reasoning is not None else {}
    calls = [_with_text_arguments(call) if text_arguments else call for call in message.tool_calls]
    given |= {"tool_calls": calls} if calls else {}
    optional = {"name": message.name, "tool_call_id": message.tool_call_id}
    return given | {key: value for key, value in optional.items() if value is not None}


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    if not isinstance(function.get("arguments", ""), str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return dict(call) | {"function": function}


def _new(slots: list[Slot], number: int, field: str) -> str:
    slots.append(Slot(number, field))
    return f"\ue0e0{len(slots) - 1}\ue0e1"


def _mark_message(given: dict[str, Any], slots: list[Slot], number: int) -> None:
    if given.get("reasoning"):
        given |= dict.fromkeys(REASONING_KEYS, _around(given["reasoning"], slots, number, "reasoning"))
    content = given["content"]
    opening, thought, answer = cut_thought(content) if given["role"] == "assistant" else ("", "", content)
    closing = content[len(opening) + len(thought) : len(content) - len(answer)]
    thought = _around(thought, slots, number, "thought")
    given["content"] = opening + thought + closing + _around(answer, slots, number, "content")
    if "tool_calls" in given:
        given["tool_calls"] = [_marked_call(call, slots, number) for call in given["tool_calls"]]


def _around(text: str, slots: list[Slot], number: int, field: str) -> str:
    """The text with marks where its first word begins and its last ends; templates strip the white space outside."""
    core = text.strip()
    if not core:
        return text
    begins = text.index(core)
    before, after = text[:begins], text[begins + len(core) :]
    return before + _new(slots, number, field) + core + _new(slots, number, field) + after


def _marked_call(call: Mapping[str, Any], slots: list[Slot], number: int) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(name, str):
        function["name"] = _new(slots, number, "call") + name
    if isinstance(arguments, str):
        function["arguments"] = _around(arguments, slots, number, "call")
    elif isinstance(arguments, Mapping):
        function["arguments"] = _marked_leaves(arguments, slots, number)
    return dict(call) | {"function": function}


def _marked_leaves(value: Any, slots: list[Slot], number: int) -> Any:
    """JSON whose texts are followed by marks."""
    if isinstance(value, str):
        return value + _new(slots, number, "call") if value else value
    if isinstance(value, Mapping):
        return {key: _marked_leaves(one, slots, number) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_marked_leaves(one, slots, number) for one in value]
    return value
