"""One message of a row: its role, its content, its reasoning and calls, and whether it is supervised."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.column_names import MASKED_KEYS, TRAIN_KEYS
from qlora_core.data.rows.tool_calls import Tool, calls_of, without_nulls
from qlora_core.data.rows.values import MAX_QUOTED, flag_of, is_empty, kind_of, quoted
from qlora_core.data.schema import CONTENT_KEYS, ROLE_KEYS, Message, Role
from qlora_profiles.suggest import hint

WEIGHT_KEYS = (*TRAIN_KEYS, *MASKED_KEYS)
TOOL_CALL_KEYS = ("tool_calls", "function_call")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
TOOL_KEYS = ("name", "tool_call_id")
"""Keys of a tool's answer, and of nobody else's words."""
MESSAGE_KEYS = frozenset((*ROLE_KEYS, *CONTENT_KEYS, *WEIGHT_KEYS, *TOOL_CALL_KEYS, *REASONING_KEYS))
PLAIN_KEYS = frozenset((*ROLE_KEYS, *CONTENT_KEYS))
USUAL_KEYS = frozenset(("role", "content"))
USUAL_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
CALL_ROLES = ("function_call", "tool_call")
"""Roles whose content is a call in JSON."""
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    **dict.fromkeys(CALL_ROLES, "assistant"),
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
THINKING_STARTS = "<think>"
THINKING_PARTS = ("thinking", "reasoning")
TEXT_PARTS = ("text", "input_text", "output_text")
FORM_OF_MESSAGES = 'a list such as [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'
MEDIA_PARTS = ("image", "audio", "video", "speech")
TEXT_ONLY = "this trains on text only"


def message_of(message: Any, place: str, *, all_roles: bool) -> Message:
    """A row's message as ours. ``place`` names it in errors.

    Raises:
        RowRejected: it has no role or content that can be trained on, or keys that contradict each other.
    """
    if not isinstance(message, Mapping):
        raise RowRejected(f"{place} is {kind_of(message)}, not an object with a role and a content")
    usual = _usual_role(message)
    if usual is not None:
        content = whole_text(message["content"], f"{place} ({usual})")
        return Message(role=usual, content=content, supervised=all_roles or usual == "assistant")
    written = _value(message, ROLE_KEYS, place)
    role = _role(written, place)
    named = f"{place} ({role})"
    if (
        PLAIN_KEYS.issuperset(message)
        and written not in CALL_ROLES
        and all(isinstance(text, str) for text in message.values())
    ):
        content = text_of(_value(message, CONTENT_KEYS, place), named)
        return Message(role=role, content=content, supervised=all_roles or role == "assistant")
    message = _with_plain_content(message, role)
    calls, content = _calls_and_content(message, written, place, named)
    reasoning = _reasoning(message, content, named)
    if role != "assistant" and (calls or reasoning):
        raise RowRejected(f"{named}: only an assistant has {'tool calls' if calls else 'reasoning'}")
    supervised = _is_learned(message, place) and (all_roles or role == "assistant")
    made = Message(role=role, content=content, supervised=supervised, reasoning=reasoning, tool_calls=calls)
    return _with_tool_keys(made, message, named) if role == "tool" else made


def _usual_role(message: Mapping[str, Any]) -> Role | None:
    """The role of a message that is a plain role and a plain text, as nearly all are."""
    if message.keys() != USUAL_KEYS or type(message["role"]) is not str or type(message["content"]) is not str:
        return None
    return USUAL_ROLES.get(message["role"])


def text_of(value: Any, place: str) -> str:
    """Content that is text, or a list of text parts, as one text.

    Raises:
        RowRejected: it is anything else, or holds half characters.
    """
    if isinstance(value, str):
        return whole_text(value, place)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "".join(_part(part, place) for part in value)
    fix = "as text: the JSON of it" if isinstance(value, Mapping) else ""
    fix = f'as text: "{str(value).lower()}"' if isinstance(value, bool | int | float) else fix
    raise RowRejected(f"{place}: the content is {kind_of(value)}, not text", fix=fix)


def cell_text(value: Any, name: str) -> str:
    """The text of a column, which may be a list of text parts, but no list of texts: those are several values.

    Raises:
        RowRejected: as ``text_of``, and for such a list.
    """
    if isinstance(value, list) and not all(isinstance(part, Mapping) and "type" in part for part in value):
        raise RowRejected(f'"{name}" is a list of {len(value)}, not one text', fix=f"one text under {name} in each row")
    return text_of(value, f'"{name}"')


def whole_text(text: str, place: str) -> str:
    """The text itself.

    Raises:
        RowRejected: it holds half characters, which no tokenizer can read.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError as error:
        char = text[error.start]
        damaged = "\udc80" <= char <= "\udcff"
        fault = f"a byte that is not UTF-8 (0x{ord(char) - 0xDC00:02x})" if damaged else f"half a character ({char!a})"
        raise RowRejected(f"{place} holds {fault}") from error
    return text


def _with_plain_content(message: Mapping[str, Any], role: Role) -> Mapping[str, Any]:
    """A tool's result that is an object as the JSON that it is; an assistant's parts that are thinking as its
    reasoning."""
    key = next((key for key in CONTENT_KEYS if message.get(key) is not None), "")
    content = message.get(key)
    if role == "tool" and isinstance(content, Mapping):
        return {**message, key: json.dumps(without_nulls(content), ensure_ascii=False, default=str)}
    if role != "assistant" or not isinstance(content, list) or not any(map(_thought, content)):
        return message
    thoughts = [thought for part in content if (thought := _thought(part))]
    if any(message.get(name) for name in REASONING_KEYS):
        return message
    return {**message, key: [part for part in content if not _thought(part)], REASONING_KEYS[0]: "\n".join(thoughts)}


def _thought(part: Any) -> str | None:
    """The text of a content part of type thinking."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    text = part.get(kind, part.get("text")) if kind in THINKING_PARTS else None
    return text if isinstance(text, str) else None


def _calls_and_content(
    message: Mapping[str, Any], written: str, place: str, named: str
) -> tuple[tuple[Tool, ...], str]:
    """A message that calls tools may have no content; one whose role says that it is a call has nothing else."""
    given = [key for key in TOOL_CALL_KEYS if message.get(key)]
    if len(given) > 1:
        raise RowRejected(f"{place}: {quoted(given)} are two forms of the same; keep one")
    if written.strip().lower() in CALL_ROLES and not given:
        content = _value(message, CONTENT_KEYS, place)
        calls = calls_of(content, f"{place} ({written})")
        if not calls:
            raise RowRejected(f"{place} ({written}) calls nothing")
        return calls, ""
    calls = calls_of(message[given[0]], f'{place} "{given[0]}"') if given else ()
    if calls and all(message.get(key) is None for key in CONTENT_KEYS):
        return calls, ""
    return calls, text_of(_value(message, CONTENT_KEYS, place), named)


def _reasoning(message: Mapping[str, Any], content: str, named: str) -> str | None:
    given = {key: message[key] for key in REASONING_KEYS if not is_empty(message.get(key))}
    if not given:
        return None
    key, reasoning = next(iter(given.items()))
    if any(other != reasoning for other in given.values()):
        raise RowRejected(f"{named}: {quoted(list(given))} say different things")
    if THINKING_STARTS in content:
        raise RowRejected(f'{named} has reasoning twice: "{key}" and {THINKING_STARTS} in its content')
    return text_of(reasoning, f'{named} "{key}"')


def _with_tool_keys(made: Message, message: Mapping[str, Any], named: str) -> Message:
    found = {key: message[key] for key in TOOL_KEYS if message.get(key) is not None}
    strange = next((key for key, value in found.items() if not isinstance(value, str)), None)
    if strange:
        raise RowRejected(f'{named}: "{strange}" is {kind_of(found[strange])}, not text')
    return Message(role="tool", content=made.content, supervised=made.supervised, **found)


def _value(message: Mapping[str, Any], keys: tuple[str, ...], place: str) -> Any:
    found = [message[key] for key in keys if message.get(key) is not None]
    if found:
        if any(other != found[0] for other in found[1:]):
            raise RowRejected(f"{place}: {quoted(keys)} say different things")
        return found[0]
    wanted = keys[0]
    if any(key in message for key in keys):
        raise RowRejected(f'{place}: "{wanted}" is null')
    strangers = [key for key in message if key not in MESSAGE_KEYS]
    column = strangers[0] if len(strangers) == 1 else "KEY"
    reason = f'{place} has no "{wanted}", found {quoted(list(message)) or "nothing"}'
    raise RowRejected(reason, fix=f"--field {wanted}={column}")


def _role(value: Any, place: str) -> Role:
    if not isinstance(value, str):
        raise RowRejected(f"{place}: the role is {kind_of(value)}, not text")
    role = ROLES.get(value.strip().lower())
    if role is None:
        known = ("system", "user", "assistant", "tool")
        nearest = hint(value, ROLES)
        raise RowRejected(f'{place}: unknown role "{value[:MAX_QUOTED]}"{nearest}', fix="one of " + ", ".join(known))
    return role


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return whole_text(part, place)
    if not isinstance(part, Mapping):
        raise RowRejected(f"{place}: a part of the content is {kind_of(part)}, not an object with a type")
    kind = str(part.get("type", "text"))
    if kind not in TEXT_PARTS:
        what = TEXT_ONLY if any(word in kind for word in MEDIA_PARTS) else "only text parts can be read"
        raise RowRejected(f"{place}: the content has a part of type {kind[:MAX_QUOTED]}; {what}")
    text = next((part[key] for key in ("text", "value", "content") if part.get(key) is not None), None)
    if not isinstance(text, str):
        raise RowRejected(f'{place}: a text part has no "text"')
    return whole_text(text, place)


def _is_learned(message: Mapping[str, Any], place: str) -> bool:
    """Whether the message's own flags let it be supervised; without one they do."""
    given = {key: message[key] for key in WEIGHT_KEYS if message.get(key) is not None}
    if not given:
        return True
    flags = {key: learned_by(key, value) for key, value in given.items()}
    for key, flag in flags.items():
        if flag is None:
            meant = "0 (learned) or 1 (not learned)" if key in MASKED_KEYS else "0 (not learned) or 1 (learned)"
            raise RowRejected(f'{place}: "{key}" is {str(given[key])[:MAX_QUOTED]}; {meant}')
    if len(set(flags.values())) > 1:
        raise RowRejected(f"{place}: {quoted(list(flags))} say different things")
    return all(flags.values())


def learned_by(key: str, value: Any) -> bool | None:
    """Whether a flag under this key lets its message be learned; ``None`` where it is no flag."""
    flag = flag_of(value)
    return flag if flag is None or key not in MASKED_KEYS else not flag
