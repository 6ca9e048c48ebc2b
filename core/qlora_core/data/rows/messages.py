"""One message of a row: its role, its content, and whether it is supervised."""

from collections.abc import Mapping, Sequence
from typing import Any

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.schema import CONTENT_KEYS, ROLE_KEYS, Message, Role
from qlora_profiles.suggest import hint

WEIGHT_KEYS = ("loss_weight", "weight", "train", "loss")
TOOL_CALL_KEYS = ("tool_calls", "function_call")
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
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
MAX_QUOTED = 60


def message_of(message: Any, place: str, *, all_roles: bool) -> Message:
    """A row's message as ours. ``place`` names it in errors.

    Raises:
        RowRejected: it has no role or content that can be trained on.
    """
    if not isinstance(message, Mapping):
        raise RowRejected(f"{place} is {kind_of(message)}, not an object with a role and a content")
    if any(message.get(key) for key in TOOL_CALL_KEYS):
        raise RowRejected(f'{place} has "tool_calls": only text can be trained', fix="write the call into its content")
    role = _role(_value(message, ROLE_KEYS, place), place)
    content = text_of(_value(message, CONTENT_KEYS, place), f"{place} ({role})")
    counts = _weight(message, place)
    return Message(role=role, content=content, supervised=counts and (all_roles or role == "assistant"))


def text_of(value: Any, place: str) -> str:
    """Content that is text, or a list of text parts, as one text.

    Raises:
        RowRejected: it is anything else, or holds half characters.
    """
    if isinstance(value, str):
        return whole_text(value, place)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "".join(_part(part, place) for part in value)
    raise RowRejected(f"{place}: the content is {kind_of(value)}, not text")


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


def kind_of(value: Any) -> str:
    """A value's JSON type in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = ((str, "a text"), (Mapping, "an object"), (int | float, "a number"), (Sequence, "a list"))
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def quoted(names: Sequence[str]) -> str:
    """``"a", "b"``, cut off where it grows too long to read."""
    text = ", ".join(f'"{name}"' for name in names)
    return text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED].rpartition(",")[0] + ", ..."


def _value(message: Mapping[str, Any], keys: tuple[str, ...], place: str) -> Any:
    for key in keys:
        if message.get(key) is not None:
            return message[key]
    wanted = keys[0]
    if any(key in message for key in keys):
        raise RowRejected(f'{place}: "{wanted}" is null')
    found = [key for key in message if key not in (*ROLE_KEYS, *CONTENT_KEYS, *WEIGHT_KEYS)]
    column = found[0] if len(found) == 1 else "KEY"
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
    kind = part.get("type", "text")
    if kind != "text":
        raise RowRejected(f"{place}: the content has a part of type {kind}; only text can be trained")
    text = next((part[key] for key in ("text", "value") if part.get(key) is not None), None)
    if not isinstance(text, str):
        raise RowRejected(f'{place}: a text part has no "text"')
    return whole_text(text, place)


def _weight(message: Mapping[str, Any], place: str) -> bool:
    """Whether the message's own weight lets it be supervised; without one it does."""
    weights = {key: message[key] for key in WEIGHT_KEYS if message.get(key) is not None}
    for key, weight in weights.items():
        if not isinstance(weight, bool | int | float) or weight not in (0, 1):
            raise RowRejected(f'{place}: "{key}" is {str(weight)[:MAX_QUOTED]}; 0 (not learned) or 1 (learned)')
    if len({bool(weight) for weight in weights.values()}) > 1:
        raise RowRejected(f"{place}: {quoted(list(weights))} say different things")
    return all(weights.values())
