"""Row shapes: the columns of one row to one conversation, whatever the columns are called."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from qlora_core.data.bad_rows import RowRejected
from qlora_core.data.rows.column_names import CANONICAL, fold, meaning, names_meaning
from qlora_core.data.rows.left_out import LeftOut, Stray, counted, strays_of
from qlora_core.data.rows.messages import cell_text, learned_by, text_of
from qlora_core.data.rows.missing import is_one_message, missing
from qlora_core.data.rows.renaming import KEPT_LAYOUTS, Columns, Renamed, Renaming
from qlora_core.data.rows.tool_calls import names_of, tools_of, without_nulls
from qlora_core.data.rows.turns import TurnReader, holds_messages
from qlora_core.data.rows.values import flag_of, is_empty, quoted
from qlora_core.data.schema import (
    ANSWER_COLUMNS,
    CONTENT_KEYS,
    MESSAGE_COLUMNS,
    PROMPT_COLUMNS,
    ROLE_KEYS,
    Conversation,
    Message,
    ReadOptions,
)
from qlora_core.data.sources.formats import Row
from qlora_profiles.errors import UserError
from qlora_profiles.suggest import did_you_mean

Used = tuple[str, ...]
Shape = tuple[str, Used, Callable[[Columns], Conversation]]

QUESTION_COLUMNS = ("instruction", *PROMPT_COLUMNS, *MESSAGE_COLUMNS)
CONTEXT_WRITTEN = 'rows whose "context" stands in the prompt, behind a blank line: {}'
TOOLS_WRITTEN = 'rows whose "tools" stand in the system message already: {}'
ENDS_UNANSWERED = "rows that end with a question, which is not learned: {}"


class RowReader:
    """Turns rows into conversations and keeps count of what it met.

    ``shapes`` counts rows by shape; ``used`` are columns in the file's own names; ``columns`` those that are
    left out; ``told`` counts what a person should know besides, by its sentence.
    """

    def __init__(self, options: ReadOptions) -> None:
        self.options = options
        self.shapes: Counter[str] = Counter()
        self.used: dict[str, None] = {}
        self.columns_seen: dict[str, None] = {}
        self.columns = LeftOut()
        self.told: Counter[str] = Counter()
        self._turns = TurnReader(options, self.told)
        self._renaming = Renaming(options)
        self._all_roles = options.loss_on == "all"
        self._known_strays: dict[tuple[tuple[str, ...] | None, Used], dict[str, Stray]] = {}

    def conversation(self, row: Row) -> Conversation:
        """The row as a conversation.

        Raises:
            RowRejected: it cannot be one, or has nothing to supervise.
        """
        try:
            return self._conversation_of(row)
        except RecursionError as error:
            raise RowRejected("brackets inside brackets, too deep to read") from error

    def _conversation_of(self, row: Row) -> Conversation:
        if not self.columns_seen.keys() >= row.columns.keys():
            self.columns_seen |= dict.fromkeys(row.columns)
        found = self._renaming.renamed(row.columns)
        columns = found.columns
        self._refuse_by_name(columns)
        shape, used, build = self._shape(columns)
        conversation = replace(build(columns), line=row.line)
        if conversation.text is None:
            conversation = conversation if row.text else _without_made_nulls(conversation)
            conversation, more = self._with_system_and_tools(conversation, columns, from_text=bool(row.text))
            used = (*used, *more)
            _check_any_supervised(conversation)
        used = (*used, *self._flags(columns))
        self.shapes[shape] += 1
        contents = [message.content for message in conversation.messages] or [conversation.text or ""]
        self._leave_out(columns, self._strays(found, used), used, contents)
        for name, value in found.replaced.items():
            self.columns.add(Stray(name, "metadata"), value, ())
        self.columns.on_purpose.update(name for name, value in found.dropped.items() if not is_empty(value))
        return conversation

    # What becomes of a row

    def _shape(self, columns: Columns) -> Shape:
        """The row's shape, the columns that it is made of, and what builds it."""
        messages = self._first(columns, MESSAGE_COLUMNS)
        answer, prompt = self._first(columns, ANSWER_COLUMNS), self._first(columns, PROMPT_COLUMNS)
        pair = answer is not None and ("instruction" in columns or prompt is not None)
        if messages and not (pair and is_empty(columns[messages])):
            _check_no_plain_text(columns, messages)
            shape = "sharegpt" if _is_sharegpt(columns[messages]) else "messages"
            added = (answer,) if answer and answer in self.options.fields else ()
            return shape, (messages, *added), lambda row: self._from_messages(row, messages, *added)
        if answer and "instruction" in columns:
            used = self._present(columns, "instruction", "input", "context", "history", "reasoning", answer)
            return "instruction", used, lambda row: self._from_instruction(row, answer)
        if answer and prompt:
            shape = "input/output" if (prompt, answer) == ("input", "output") else "prompt/completion"
            extras = () if holds_messages(columns[prompt]) else ("context", "history", "reasoning")
            used = (prompt, *self._present(columns, *extras), answer)
            return shape, used, lambda row: self._from_pair(row, prompt, answer)
        if "text" in columns and not is_one_message(columns):
            return "text", ("text",), _from_text
        raise missing(columns, prompt, answer)

    def _first(self, columns: Columns, names: Iterable[str]) -> str | None:
        """The first of the names that a person mapped, else that is filled, else that is there."""
        there = [name for name in names if name in columns]
        if len(there) < 2:
            return there[0] if there else None
        mapped = [name for name in there if name in self.options.fields]
        return next(iter([*mapped, *(name for name in there if not is_empty(columns[name])), *there]), None)

    def _present(self, columns: Columns, *names: str) -> Used:
        return tuple(name for name in names if name in columns)

    def _from_messages(self, columns: Columns, name: str, answer: str | None = None) -> Conversation:
        messages = self._turns.messages(columns[name], name)
        if answer:
            messages = (*messages, *self._answer_to(messages, columns[answer], answer))
        return self._conversation(messages)

    def _answer_to(self, messages: tuple[Message, ...], value: Any, name: str) -> tuple[Message, ...]:
        """A mapped answer beside messages: what follows them, or what they end with anyway."""
        answers = self._turns.answers(value, name)
        if messages[-1].role != "assistant":
            return answers
        if [message.content for message in messages[-len(answers) :]] == [message.content for message in answers]:
            return ()
        column = self.options.fields[name]
        raise RowRejected(f'the messages end with an answer, and "{column}" is another', fix=f"--ignore {column}")

    def _from_instruction(self, columns: Columns, answer: str) -> Conversation:
        addition = cell_text(columns.get("input", ""), "input")
        prompt = "\n".join(filter(None, (cell_text(columns["instruction"], "instruction"), addition)))
        return self._from_question(columns, prompt, "instruction", answer)

    def _from_pair(self, columns: Columns, prompt: str, answer: str) -> Conversation:
        asked = columns[prompt]
        if not holds_messages(asked):
            return self._from_question(columns, cell_text(asked, prompt), prompt, answer)
        given = [replace(message, supervised=self._all_roles) for message in self._turns.messages(asked, prompt)]
        return self._conversation((*given, *self._turns.answers(columns[answer], answer, given)))

    def _from_question(self, columns: Columns, prompt: str, name: str, answer: str) -> Conversation:
        """History, the question with its context behind a blank line, and the answer with its reasoning."""
        if not prompt.strip():
            raise RowRejected(f'"{name}" is empty')
        context = cell_text(columns.get("context", ""), "context")
        if context.strip():
            prompt = f"{prompt}\n\n{context}"
            self.told[CONTEXT_WRITTEN] += 1
        user = Message(role="user", content=prompt, supervised=self._all_roles)
        answers = self._turns.answers(columns[answer], answer, [user])
        reasoning = columns.get("reasoning")
        if not is_empty(reasoning):
            dicts = {"role": "assistant", "content": answers[0].content, "reasoning": reasoning}
            answers = (self._turns.message(dicts, f'"{answer}"'), *answers[1:])
        return self._conversation((*self._turns.history(columns.get("history")), user, *answers))

    def _with_system_and_tools(
        self, conversation: Conversation, columns: Columns, *, from_text: bool
    ) -> tuple[Conversation, Used]:
        conversation, used = self._with_system(conversation, columns)
        value = columns.get("tools")
        if not value:
            return conversation, used
        tools = tools_of(value if from_text else without_nulls(value), "tools")
        systems = [message.content for message in conversation.messages if message.role == "system"]
        if tools and any(all(name in text for name in names_of(tools)) for text in systems):
            self.told[TOOLS_WRITTEN] += 1
        else:
            conversation = replace(conversation, tools=tools)
        return conversation, (*used, "tools")

    def _with_system(self, conversation: Conversation, columns: Columns) -> tuple[Conversation, Used]:
        if not (columns.get("system") or self.options.system_prompt):
            return conversation, ()
        own = cell_text(columns.get("system", ""), "system")
        systems = [message.content for message in conversation.messages if message.role == "system"]
        used = ("system",) if columns.get("system") else ()
        if own.strip() and systems and own.strip() != systems[0].strip():
            raise RowRejected('two system prompts: the column "system" and a system message')
        system = own if own.strip() else self.options.system_prompt
        if systems or not system:
            return conversation, used
        message = Message(role="system", content=system, supervised=self._all_roles)
        return replace(conversation, messages=(message, *conversation.messages)), used

    def _conversation(self, messages: tuple[Message, ...]) -> Conversation:
        if messages[-1].role in ("user", "system"):
            self.told[ENDS_UNANSWERED] += not self._all_roles
        return Conversation(line=0, messages=messages, supervise_all=self._all_roles)

    # What is left

    def _refuse_by_name(self, columns: Columns) -> None:
        """What no shape reads: it is noted even where the rest of the row is no example."""
        for name in names_meaning(tuple(columns), ("media", "preference")):
            if name not in self.options.fields and not is_empty(columns[name]):
                self.columns.refuse(name, meaning(name), columns[name])

    def _flags(self, columns: Columns) -> Used:
        """Flags of the whole row: one that says no refuses it, one that is no flag is left to the file's refusal.

        Raises:
            RowRejected: the row is not to be learned.
        """
        flags = {name: learned_by(fold(name), columns[name]) for name in names_meaning(tuple(columns), ("weight",))}
        for name, flag in flags.items():
            if flag is False:
                said = str(columns[name]).lower()[:20]
                raise RowRejected(f'"{name}" is {said}: the row is not to be learned', fix="take it out of the file")
        return tuple(name for name, flag in flags.items() if flag)

    def _strays(self, found: Renamed, used: Used) -> dict[str, Stray]:
        """The columns that were not used; those that were are noted. Found once for all rows of the same names."""
        key = (found.names, used)
        if found.names is not None and key in self._known_strays:
            return self._known_strays[key]
        self.used |= dict.fromkeys(found.own.get(name, name) for name in used)
        strays = {
            column: stray
            for column, stray in strays_of(found.columns, found.own, used).items()
            if stray.kind not in ("media", "preference") or column in found.own
        }
        if found.names is not None and len(self._known_strays) < KEPT_LAYOUTS:
            self._known_strays[key] = strays
        return strays

    def _leave_out(self, columns: Columns, strays: Mapping[str, Stray], used: Used, contents: list[str]) -> None:
        mapped_answer = any(name in self.options.fields for name in used if name in ANSWER_COLUMNS)
        for column, stray in strays.items():
            value = columns[column]
            if fold(column) == "label" and flag_of(value) is not None and len(contents) > 1:
                stray = stray._replace(kind="preference")
            if column in ANSWER_COLUMNS and mapped_answer:
                stray = stray._replace(kind="metadata")
            self.columns.add(stray, value, contents)

    # What is said of the file

    def check(self, file: str) -> None:
        """Nothing, where all that is left out may be.

        Raises:
            UserError: something that could shape the prompt or the loss would be; ``--ignore`` or ``--field`` names
                a column that no row has.
        """
        self._check_names(file)
        chosen = any(meaning(column) == "preference" for column in self.options.fields.values())
        pairs = any(shape not in ("messages", "sharegpt", "text") for shape in self.shapes)
        asked = any(CANONICAL.get(fold(column)) in QUESTION_COLUMNS for column in self.columns_seen)
        fault = self.columns.fault(file, chosen=chosen, pairs=pairs, asked=asked)
        fault = fault or self._turns.left_out.fault(file, chosen=False, pairs=False)
        if fault:
            raise fault

    def _check_names(self, file: str) -> None:
        if not self.columns_seen:
            return
        seen = {**self.columns_seen, **self._turns.keys_seen}
        for column in self.options.ignore:
            if column not in seen:
                raise _no_such(file, f"--ignore {column}", "--ignore ", column, seen)
        for wanted, column in self.options.fields.items():
            is_key = wanted in (*ROLE_KEYS, *CONTENT_KEYS)
            if column not in (seen if is_key else self.columns_seen) and (self._turns.keys_seen or not is_key):
                raise _no_such(file, f"--field {wanted}={column}", f"--field {wanted}=", column, self.columns_seen)

    def notes(self, rows: int) -> list[str]:
        """What a person should know of how ``rows`` good rows were read."""
        told = [
            ("columns not used", self.columns.told),
            ("columns that only repeat the row", self.columns.repeating),
            ("keys of messages not used", self._turns.left_out.told + self._turns.left_out.repeating),
            ("left out on purpose (--ignore)", self.columns.on_purpose + self._turns.left_out.on_purpose),
        ]
        shapes = ", ".join(f"{shape} {count:,}" for shape, count in self.shapes.most_common())
        return [
            *([f"rows of several shapes: {shapes}"] if len(self.shapes) > 1 else []),
            *(f"{words}: {counted(counts, rows)}" for words, counts in told if counts),
            *(sentence.format(f"{count:,}") for sentence, count in self.told.items() if count),
        ]


def _no_such(file: str, said: str, fix: str, column: str, seen: Mapping[str, None]) -> UserError:
    near = did_you_mean(column, seen)
    return UserError(
        f"{said}  no row has that column; {file} has {quoted(list(seen))}", f"{fix}{near[0] if near else 'COLUMN'}"
    )


def _check_no_plain_text(columns: Columns, name: str) -> None:
    """Raise RowRejected for a text where messages should be, with another one beside it that may be its answer."""
    value = columns[name]
    if not isinstance(value, str) or value.lstrip()[:1] in ("[", "{"):
        return
    known = (*MESSAGE_COLUMNS, *PROMPT_COLUMNS, "system", "instruction", "tools")
    others = [key for key, cell in columns.items() if isinstance(cell, str) and key not in known]
    others = [key for key in others if meaning(key) != "metadata"]
    if len(others) == 1:
        fix = f"--field question={name},answer={others[0]}"
        raise RowRejected(f'"{name}" is a text, not a list of messages', fix=fix)


def _without_made_nulls(conversation: Conversation) -> Conversation:
    """Arguments of calls from Parquet, without the keys that only other rows' calls have."""
    if not any(message.tool_calls for message in conversation.messages):
        return conversation
    bare = (
        replace(message, tool_calls=tuple(map(without_nulls, message.tool_calls))) for message in conversation.messages
    )
    return replace(conversation, messages=tuple(bare))


def _from_text(columns: Columns) -> Conversation:
    text = text_of(columns["text"], '"text"')
    if not text.strip():
        raise RowRejected('"text" is empty: nothing to learn')
    return Conversation(line=0, text=text, supervise_all=True)


def _check_any_supervised(conversation: Conversation) -> None:
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if not answers:
        raise RowRejected("no assistant message: nothing to learn")
    if not any(map(_says_something, answers)):
        raise RowRejected("the assistant's answer is empty: nothing to learn")
    if any(message.supervised and not _says_something(message) for message in answers):
        raise RowRejected(
            "an assistant message is empty: it teaches to answer nothing", fix='"loss_weight": 0 on that message'
        )
    if not any(message.supervised for message in conversation.messages):
        raise RowRejected("every assistant message has weight 0: nothing to learn")


def _says_something(message: Message) -> bool:
    return not is_empty(message.content) or bool(message.tool_calls)


def _is_sharegpt(messages: Any) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, dict) and "from" in first and "role" not in first
