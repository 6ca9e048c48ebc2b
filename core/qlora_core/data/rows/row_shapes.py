"""Row shapes: the columns of one row to one conversation, whatever the columns are called."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from msgspec.structs import replace

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.messages import TOOL_CALL_KEYS, WEIGHT_KEYS, kind_of, message_of, quoted, text_of
from qlora_core.data.schema import (
    ANSWER_COLUMNS,
    CONTENT_KEYS,
    KNOWN_COLUMNS,
    PROMPT_COLUMNS,
    ROLE_KEYS,
    Conversation,
    Message,
    ReadOptions,
)
from qlora_core.data.sources.formats import Row
from qlora_profiles.suggest import did_you_mean

MESSAGE_KEYS = frozenset((*ROLE_KEYS, *CONTENT_KEYS, *WEIGHT_KEYS, *TOOL_CALL_KEYS))
Columns = dict[str, Any]
MOST_COMPARED = 50  # columns looked at for a slip of the pen; a row may have a hundred thousand


class RowReader:
    """Turns rows into conversations and keeps count of what it met.

    ``shapes`` counts rows by shape; ``used`` and ``unused`` are columns in the file's own names;
    ``unused_keys`` are keys of messages that nothing reads; ``ignored_weights`` counts messages that ask
    to be trained on but are no answers.
    """

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.shapes: Counter[str] = Counter()
        self.used: dict[str, None] = {}
        self.unused: dict[str, None] = {}
        self.unused_keys: dict[str, None] = {}
        self.columns_seen: dict[str, None] = {}
        self.ignored_weights = 0
        self._wanted = {column: wanted for wanted, column in options.fields.items()}
        self._message_names = {
            column: wanted for wanted, column in options.fields.items() if wanted in (*ROLE_KEYS, *CONTENT_KEYS)
        }
        self._all_roles = options.loss_on == "all"

    def conversation(self, row: Row) -> Conversation:
        """The row as a conversation.

        Raises:
            RowRejected: it cannot be one, or has nothing to supervise.
        """
        self.columns_seen |= dict.fromkeys(row.columns)
        columns = self._renamed(row.columns)
        shape, used, build = self._shape(columns)
        conversation = build(columns, row.line)
        if conversation.text is None:
            conversation = self._with_system(conversation, columns)
            used = (*used, *(("system",) if columns.get("system") else ()))
            _check_any_supervised(conversation)
        self._count(shape, used, columns)
        return conversation

    def _renamed(self, columns: Mapping[str, Any]) -> Columns:
        """Columns under their wanted names; ``null`` counts as absent. A mapped column wins over its namesake."""
        taken = self.options.fields
        own = {name: value for name, value in columns.items() if name not in taken and name not in self._wanted}
        mapped = {wanted: columns[column] for column, wanted in self._wanted.items() if column in columns}
        return {name: value for name, value in (own | mapped).items() if value is not None}

    def _shape(self, columns: Columns) -> tuple[str, tuple[str, ...], Callable[[Columns, int], Conversation]]:
        """The row's shape, the columns that it is made of, and what builds it."""
        messages = next((name for name in ("messages", "conversations") if name in columns), None)
        if messages:
            shape = "sharegpt" if _is_sharegpt(columns[messages]) else "messages"
            return shape, (messages,), lambda row, line: self._from_messages(row[messages], messages, line)
        answer = next((name for name in ANSWER_COLUMNS if name in columns), None)
        if answer and "instruction" in columns:
            used = tuple(name for name in ("instruction", "input", "history", answer) if name in columns)
            return "instruction", used, lambda row, line: self._from_instruction(row, answer, line)
        prompt = next((name for name in PROMPT_COLUMNS if name in columns), None)
        if answer and prompt:
            shape = "input/output" if (prompt, answer) == ("input", "output") else "prompt/completion"
            return shape, (prompt, answer), lambda row, line: self._from_pair(row, prompt, answer, line)
        if "text" in columns:
            return "text", ("text",), _from_text
        raise _missing(columns, prompt, answer)

    def _from_messages(self, value: Any, name: str, line: int) -> Conversation:
        return self._conversation(line, self._messages(value, name))

    def _from_instruction(self, columns: Columns, answer: str, line: int) -> Conversation:
        instruction = text_of(columns["instruction"], '"instruction"')
        addition = text_of(columns.get("input", ""), '"input"')
        prompt = "\n".join(filter(None, (instruction, addition)))
        pair = self._pair(prompt, columns[answer], "instruction", answer)
        return self._conversation(line, (*self._history(columns.get("history", [])), *pair))

    def _from_pair(self, columns: Columns, prompt: str, answer: str, line: int) -> Conversation:
        asked, answered = columns[prompt], columns[answer]
        if isinstance(asked, list) and _holds_messages(asked):
            given = [replace(message, supervised=self._all_roles) for message in self._messages(asked, prompt)]
            rest = self._messages(answered, answer) if isinstance(answered, list) else (self._answer(answered, answer),)
            return self._conversation(line, (*given, *rest))
        return self._conversation(line, self._pair(text_of(asked, f'"{prompt}"'), answered, prompt, answer))

    def _messages(self, value: Any, name: str) -> tuple[Message, ...]:
        """The messages of a column; a text is read as JSON, which is how CSV holds a list."""
        messages = _unpacked(value)
        if not isinstance(messages, list):
            raise RowRejected(f'"{name}" is {kind_of(messages)}, not a list of messages')
        if not messages:
            raise RowRejected(f'"{name}" is an empty list')
        return tuple(self._message(message, f"message {number}") for number, message in enumerate(messages, 1))

    def _message(self, message: Any, place: str) -> Message:
        if isinstance(message, dict):
            if self._message_names:
                message = {self._message_names.get(key, key): value for key, value in message.items()}
            if not MESSAGE_KEYS.issuperset(message):
                self.unused_keys |= {k: None for k, v in message.items() if k not in MESSAGE_KEYS and v is not None}
        made = message_of(message, place, all_roles=self._all_roles)
        asks = made.role != "assistant" and any(message.get(key) for key in WEIGHT_KEYS)
        self.ignored_weights += asks and not self._all_roles
        return made

    def _pair(self, prompt: str, answered: Any, prompt_name: str, answer_name: str) -> tuple[Message, Message]:
        if not prompt.strip():
            raise RowRejected(f'"{prompt_name}" is empty')
        user = Message(role="user", content=prompt, supervised=self._all_roles)
        return user, self._answer(answered, answer_name)

    def _answer(self, value: Any, name: str) -> Message:
        text = text_of(value, f'"{name}"')
        if not text.strip():
            raise RowRejected(f'"{name}" is empty: nothing to learn')
        return Message(role="assistant", content=text, supervised=True)

    def _history(self, value: Any) -> list[Message]:
        """Earlier exchanges, ``[[user, assistant], ...]``."""
        exchanges = _unpacked(value) or []
        if not isinstance(exchanges, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in exchanges):
            raise RowRejected('"history" is no list of [user, assistant] pairs')
        return [
            message
            for number, (asked, answered) in enumerate(exchanges, 1)
            for message in self._pair(text_of(asked, f'"history" {number}'), answered, f"history {number}", "history")
        ]

    def _with_system(self, conversation: Conversation, columns: Columns) -> Conversation:
        own = text_of(columns.get("system", ""), '"system"')
        has_system = any(message.role == "system" for message in conversation.messages)
        if own.strip() and has_system:
            raise RowRejected('two system prompts: the column "system" and a system message')
        system = own if own.strip() else self.options.system_prompt
        if has_system or not system:
            return conversation
        message = Message(role="system", content=system, supervised=self._all_roles)
        return replace(conversation, messages=(message, *conversation.messages))

    def _conversation(self, line: int, messages: tuple[Message, ...]) -> Conversation:
        return Conversation(line=line, messages=messages, supervise_all=self._all_roles)

    def _count(self, shape: str, used: tuple[str, ...], columns: Columns) -> None:
        self.shapes[shape] += 1
        own_names = self.options.fields
        self.used |= {own_names.get(name, name): None for name in used}
        self.unused |= {own_names.get(name, name): None for name in columns if name not in used}


def _from_text(columns: Columns, line: int) -> Conversation:
    text = text_of(columns["text"], '"text"')
    if not text.strip():
        raise RowRejected('"text" is empty: nothing to learn')
    return Conversation(line=line, text=text, supervise_all=True)


def _check_any_supervised(conversation: Conversation) -> None:
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if not answers:
        raise RowRejected("no assistant message: nothing to learn")
    if not any(message.content.strip() for message in answers):
        raise RowRejected("the assistant's answer is empty: nothing to learn")
    if any(message.supervised and not message.content.strip() for message in answers):
        raise RowRejected(
            "an assistant message is empty: it teaches to answer nothing", fix='"loss_weight": 0 on that message'
        )
    if not any(message.supervised for message in conversation.messages):
        raise RowRejected("every assistant message has weight 0: nothing to learn")


def _missing(columns: Columns, prompt: str | None, answer: str | None) -> RowRejected:
    """Which column is wanted, which were found, and the mapping that would do."""
    if not columns:
        return RowRejected("the row is empty")
    found = list(columns)
    half = _missing_half(columns, prompt, answer)
    strangers = [name for name in found if name not in KNOWN_COLUMNS]
    for column in strangers[:MOST_COMPARED]:
        for wanted in did_you_mean(column, _candidates(half)):
            return RowRejected(f'no "{wanted}", found "{column}"', fix=f"--field {wanted}={column}")
    wanted = half or "messages"
    column = strangers[0] if half and len(strangers) == 1 else "COLUMN"
    return RowRejected(f'no "{wanted}", found {quoted(found)}', fix=f"--field {wanted}={column}")


def _missing_half(columns: Columns, prompt: str | None, answer: str | None) -> str | None:
    """The column that a pair lacks, or ``None`` where the row has neither half."""
    if "instruction" in columns or prompt == "input":
        return "output"
    if prompt:
        return "answer" if prompt == "question" else "completion"
    return {None: None, "output": "instruction", "answer": "question"}.get(answer, "prompt")


def _candidates(half: str | None) -> tuple[str, ...]:
    if half is None:
        return KNOWN_COLUMNS
    return (half, *(ANSWER_COLUMNS if half in ANSWER_COLUMNS else PROMPT_COLUMNS))


def _is_sharegpt(messages: Any) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and "from" in first and "role" not in first


def _holds_messages(value: list[Any]) -> bool:
    """Whether a list holds messages, not the parts of one content."""
    return bool(value) and isinstance(value[0], dict) and any(key in value[0] for key in ROLE_KEYS)


def _unpacked(value: Any) -> Any:
    if not (isinstance(value, str) and value.lstrip()[:1] in ("[", "{")):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
