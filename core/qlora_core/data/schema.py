"""The values that the data package takes and returns: frozen, no behaviour beyond them."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec import Struct, field

from qlora_core.data.bad_rows import BadRow
from qlora_profiles.errors import UserError
from qlora_profiles.facts import SourceFacts
from qlora_profiles.settings import Recipe
from qlora_profiles.suggest import hint

Format = Literal["auto", "jsonl", "json", "csv", "parquet"]
Role = Literal["system", "user", "assistant", "tool"]

MESSAGE_COLUMNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "items")
"""Columns that hold a list of messages; the first that is filled counts."""
PROMPT_COLUMNS = ("prompt", "question", "query", "input")
ANSWER_COLUMNS = ("completion", "answer", "response", "output")
KNOWN_COLUMNS = (
    "messages",
    "conversations",
    "instruction",
    *PROMPT_COLUMNS,
    *ANSWER_COLUMNS,
    "system",
    "history",
    "context",
    "reasoning",
    "tools",
    "text",
)
ROLE_KEYS = ("role", "from")
CONTENT_KEYS = ("content", "value")


class ReadOptions(Struct, frozen=True, kw_only=True):
    """How to read one source of data; ``path`` is as in ``--data``, with part and share.

    ``fields`` maps a wanted name to the column (or message key) that holds it; ``ignore`` names columns and message
    keys to leave out. ``max_samples`` keeps so many good rows in file order, drawn by ``seed`` or the first ones.
    ``loss_on`` says whether only answers or every token is supervised.
    """

    path: str
    format: Format = "auto"
    fields: Mapping[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    encoding: str = "utf-8"
    max_samples: int | None = None
    sample: Literal["random", "first"] = "random"
    skip_bad_rows: bool = False
    system_prompt: str | None = None
    loss_on: Literal["assistant", "all"] = "assistant"
    seed: int = 42

    @classmethod
    def from_recipe(cls, recipe: Recipe, source: str) -> "ReadOptions":
        """The part of a recipe that concerns reading one of its sources.

        Raises:
            UserError: an entry of ``field`` that is no NAME=COLUMN, or of an unknown name.
        """
        return cls(
            path=source,
            format=recipe.data_format,
            fields=parse_fields(recipe.field),
            ignore=recipe.ignore,
            encoding=recipe.encoding,
            max_samples=recipe.max_samples,
            sample=recipe.sample,
            skip_bad_rows=recipe.skip_bad_rows,
            system_prompt=recipe.system_prompt,
            loss_on=recipe.loss_on,
            seed=recipe.seed,
        )


class Message(Struct, frozen=True, kw_only=True):
    """One message. ``supervised`` is whether its tokens count in the loss.

    ``reasoning`` is what an assistant thought before its answer. ``tool_calls`` are in the form that templates want:
    ``{"type": "function", "function": {"name": ..., "arguments": {...}}}``. ``name`` and ``tool_call_id`` belong to
    a tool's answer.
    """

    role: Role
    content: str
    supervised: bool = False
    reasoning: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


class Conversation(Struct, frozen=True, kw_only=True):
    """One example: ``messages``, or plain ``text`` that no template is applied to.

    ``line`` counts from 1 in the file (rows, for Parquet), ``number`` the rows where several may begin on one line.
    ``supervise_all`` supervises everything but the messages that say otherwise, template included; plain text always
    has it. ``tools`` are JSON schemas of the functions that the assistant may call; the template writes them.
    Of several sources, ``source`` counts from 0; of several files, ``file`` is the name of this row's.
    """

    line: int
    number: int = 0
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    supervise_all: bool = False
    source: int = 0
    file: str = ""


class DataSet(Struct, frozen=True, kw_only=True):
    """What was read: the good rows, the rows set aside, and what a person should know of it.

    ``fingerprint`` is the SHA-256 of the file's bytes in hexadecimal. ``warnings`` are louder than ``notes``.
    ``columns_not_used`` are left out, whatever they say.
    ``sources`` are those of a mixture; empty where there is one.
    """

    path: str
    conversations: list[Conversation]
    rejected: list[BadRow]
    file_format: str
    row_shape: str
    columns_used: list[str]
    fingerprint: str
    notes: list[str]
    warnings: list[str] = field(default_factory=list)
    columns_not_used: list[str] = field(default_factory=list)
    share: int | float | None = None
    sources: tuple[SourceFacts, ...] = ()


def parse_fields(items: Iterable[str]) -> dict[str, str]:
    """``["messages=mesages"]`` as ``{"messages": "mesages"}``.

    Raises:
        UserError: anything else, or a name that rows cannot have.
    """
    wanted_to_column = {}
    for item in items:
        wanted, equals, column = (part.strip() for part in item.partition("="))
        if not (wanted and equals and column):
            raise UserError(f"--field {item}: want NAME=COLUMN", "--field messages=COLUMN")
        wanted_to_column[wanted] = column
    check_fields(wanted_to_column)
    return wanted_to_column


def check_fields(fields: Mapping[str, str]) -> None:
    """Nothing, where every wanted name is one that rows can have.

    Raises:
        UserError: one is not; names the nearest.
    """
    known = (*KNOWN_COLUMNS, *ROLE_KEYS, *CONTENT_KEYS)
    for wanted, column in fields.items():
        if wanted not in known:
            raise UserError(f"--field {wanted}={column}: no such name {wanted}{hint(wanted, known)}", _names(known))


def _names(known: Iterable[str]) -> str:
    return "one of " + ", ".join(known)
