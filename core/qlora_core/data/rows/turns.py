"""The messages of a row: lists of them, answers in any form, history; and the keys that nothing reads."""

from collections import Counter
from collections.abc import Mapping
from itertools import cycle
from typing import Any

from msgspec.structs import replace

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.column_names import TRAIN_KEYS, Meaning, meaning
from qlora_core.data.rows.exchanges import as_exchange
from qlora_core.data.rows.left_out import LeftOut, Stray
from qlora_core.data.rows.messages import (
    CALL_ROLES,
    FORM_OF_MESSAGES,
    MESSAGE_KEYS,
    PLAIN_KEYS,
    TOOL_KEYS,
    USUAL_KEYS,
    message_of,
    text_of,
)
from qlora_core.data.rows.values import flag_of, is_empty, kind_of, unpacked
from qlora_core.data.schema import CONTENT_KEYS, ROLE_KEYS, Message, ReadOptions

SPEAKERS = ("user", "assistant")
BY_TURNS = "rows whose messages are bare texts, read as question and answer by turns: {}"
ASKS_IN_VAIN = "messages that ask to be trained on but are no answers: {} (--loss-on all)"


class TurnReader:
    """Reads messages and keeps count of what it met.

    ``left_out`` are keys that nothing reads, ``told`` counts sentences for a person, ``keys_seen`` are all keys.
    """

    def __init__(self, options: ReadOptions, told: Counter[str]) -> None:
        self.keys_seen: dict[str, None] = {}
        self.left_out = LeftOut("message")
        self._told = told
        self._ignore, self._fields = options.ignore, options.fields
        self._names = {
            column: wanted for wanted, column in options.fields.items() if wanted in (*ROLE_KEYS, *CONTENT_KEYS)
        }
        self._all_roles = options.loss_on == "all"

    def messages(self, value: Any, name: str) -> tuple[Message, ...]:
        """The messages of a column; a text is read as JSON, which is how CSV holds a list."""
        messages = listed_messages(value, name)
        if not messages:
            raise RowRejected(f'"{name}" is an empty list')
        if len(messages) > 1 and all(isinstance(message, str) for message in messages):
            self._told[BY_TURNS] += 1
            messages = [{"role": role, "content": text} for role, text in zip(cycle(SPEAKERS), messages, strict=False)]
        turns = [turn for message in messages for turn in as_exchange(message) or [message]]
        made = [self.message(message, f"message {number}") for number, message in enumerate(turns, 1)]
        return tuple(_joined_calls(made, turns))

    def message(self, message: Any, place: str) -> Message:
        """One message; raises as ``message_of``."""
        if isinstance(message, dict):
            if not self.keys_seen.keys() >= message.keys():
                self.keys_seen |= dict.fromkeys(message)
            message = self._known_keys(message) if self._ignore or self._names else message
        made = message_of(message, place, all_roles=self._all_roles)
        if message.keys() == USUAL_KEYS:
            return made
        if not MESSAGE_KEYS.issuperset(message):
            read = TOOL_KEYS if made.role == "tool" else ()
            for key in (key for key in message if key not in MESSAGE_KEYS and key not in read):
                self.left_out.add(Stray(key, _meaning_of_key(key)), message[key], (made.content,))
        if PLAIN_KEYS.issuperset(message) or made.role == "assistant" or self._all_roles:
            return made
        if any(flag_of(message.get(key)) for key in TRAIN_KEYS):
            self._told[ASKS_IN_VAIN] += 1
        return made

    def _known_keys(self, message: dict[str, Any]) -> dict[str, Any]:
        """A message without keys that a person ignores, under the names that ``--field`` gives them."""
        ignored = [key for key in self._ignore if not is_empty(message.get(key))]
        if ignored:
            self.left_out.on_purpose.update(ignored)
            message = {key: value for key, value in message.items() if key not in ignored}
        if self._names:
            message = {self._names.get(key, key): value for key, value in message.items()}
        return message

    def answers(self, value: Any, name: str, asked: list[Message] | None = None) -> tuple[Message, ...]:
        """What is answered to ``asked``: a text, a message, or the messages that follow, perhaps with those asked."""
        listed = [value] if isinstance(value, Mapping) and any(key in value for key in ROLE_KEYS) else value
        if not holds_messages(listed):
            return (self._answer(value, name),)
        messages = self.messages(listed, name)
        given = asked or []
        if given and [m.content for m in messages[: len(given)]] == [m.content for m in given]:
            messages = messages[len(given) :]
        if not messages or messages[0].role != "assistant":
            raise RowRejected(f'"{name}" does not begin with an answer', fix=f"--field messages={name}")
        return messages

    def _answer(self, value: Any, name: str) -> Message:
        text = one_text(value, name)
        if not text.strip():
            raise RowRejected(f'"{name}" is empty: nothing to learn')
        return Message(role="assistant", content=text, supervised=True)

    def history(self, value: Any) -> tuple[Message, ...]:
        """Earlier exchanges: ``[[user, assistant], ...]``, or messages."""
        if is_empty(value):
            return ()
        exchanges = unpacked(value)
        known = isinstance(exchanges, list) and (
            holds_messages(exchanges) or all(as_exchange(exchange) for exchange in exchanges)
        )
        if not known:
            raise RowRejected('"history" is no list of [user, assistant] pairs, nor of messages')
        return self.messages(exchanges, "history")


def listed_messages(value: Any, name: str) -> list[Any]:
    """A column's messages, however it holds them: a list, JSON text of one, or an object of lists, as Parquet files
    keep them.

    Raises:
        RowRejected: it is anything else.
    """
    messages = unpacked(value)
    if isinstance(messages, list):
        return messages
    if isinstance(messages, Mapping) and any(key in messages for key in ROLE_KEYS):
        lists = {key: part for key, part in messages.items() if part is not None}
        if all(isinstance(part, list) for part in lists.values()) and len(set(map(len, lists.values()))) == 1:
            return [dict(zip(lists, parts, strict=True)) for parts in zip(*lists.values(), strict=True)]
    if isinstance(messages, str) and messages.lstrip().startswith(("[{'", '[{"')):
        reason = f'"{name}" is a list in Python\'s notation, not in JSON'
        raise RowRejected(reason, fix="write the column with json.dumps, or save the rows as .jsonl")
    fix = f"--field text={name} to learn it whole" if isinstance(messages, str) else FORM_OF_MESSAGES
    raise RowRejected(f'"{name}" is {kind_of(messages)}, not a list of messages', fix=fix)


def _meaning_of_key(key: str) -> Meaning:
    """What a message's key says: a name is who speaks, which templates do not write."""
    if key in TOOL_KEYS:
        return "matters" if key == "name" else "metadata"
    kind = meaning(key)
    return "matters" if kind in ("known", "preference") else kind


def one_text(value: Any, name: str) -> str:
    """An answer, which is one text. Raises ``RowRejected`` where it is a list of several."""
    if isinstance(value, list) and not all(isinstance(part, Mapping) and "type" in part for part in value):
        kind = "text" if all(isinstance(item, str) for item in value) else "value"
        kind += "" if len(value) == 1 else "s"
        pair = " (preference data? this learns one answer)" if len(value) == 2 else ""
        raise RowRejected(
            f'"{name}" is a list of {len(value)} {kind}, not one answer{pair}',
            fix=f'one text under "{name}" in each row',
        )
    return text_of(value, f'"{name}"')


def _joined_calls(messages: list[Message], turns: list[Any]) -> list[Message]:
    """Calls that follow each other, each a message of its own by its role, as one message of several calls."""
    if not any(message.tool_calls for message in messages):
        return messages
    joined: list[Message] = []
    open_call = False
    for message, turn in zip(messages, turns, strict=True):
        role = next((turn[key] for key in ROLE_KEYS if turn.get(key)), "") if isinstance(turn, Mapping) else ""
        is_call = str(role).strip().lower() in CALL_ROLES
        if is_call and open_call and joined[-1].supervised == message.supervised:
            joined[-1] = replace(joined[-1], tool_calls=(*joined[-1].tool_calls, *message.tool_calls))
        else:
            joined.append(message)
        open_call = is_call
    return joined


def holds_messages(value: Any) -> bool:
    """Whether this is a list of messages, not text nor the parts of one content."""
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and any(key in value[0] for key in ROLE_KEYS)
    )
