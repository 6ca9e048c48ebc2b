"""A chat template made ready to render, the way the model's own tokenizer would render it."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from qlora_core.data.chat.time_limit import TookTooLong, time_limit
from qlora_profiles.errors import UserError, first_line

if TYPE_CHECKING:
    from jinja2 import Environment

MessageDict = Mapping[str, Any]
MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Private-use characters: no text that people write holds them next to each other like this.
OPEN, CLOSE = "\ue0f0\ue0f2", "\ue0f1\ue0f2"
_ARGUMENT = "\ue0e9"  # stands for a tool call's argument
_BRACKETS = re.compile(f"({OPEN}|{CLOSE})")

MOST_CHARACTERS = 2**20
"""The longest published ones have 20,000."""
MOST_SECONDS = 20.0
"""A long conversation takes milliseconds."""
MOST_REPEATED, MOST_POWER = 10**7, 64
"""Characters of a text that a template makes by multiplying, and exponents."""


class TemplateFault(Exception):
    """A template refused a conversation, or broke on it. The text is the template's own."""


class ChatTemplate:
    """A compiled chat template with a tokenizer's special tokens.

    ``today`` is what ``strftime_now`` tells; ``None`` is the present day, as other programs would.

    Raises:
        UserError: the source is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], today: date | None = None) -> None:
        self.source = source
        if len(source) > MOST_CHARACTERS:
            raise UserError(f"the chat template has {len(source):,} characters", "--chat-template chatml")
        self.marks_answers = MARKER.search(source) is not None
        self.tells_date = "strftime_now" in source
        # tools and documents are defined and null elsewhere too; templates ask "is defined"
        self._variables: dict[str, Any] = {**special_tokens, "tools": None, "documents": None}
        try:
            self._compiled = _environment(today).from_string(source)
        except Exception as error:  # also what Python's own compiler says of one that is nested too deeply
            said = f"the chat template cannot be read: {first_line(error)}"
            raise UserError(said, "--chat-template chatml") from error
        self._compiled.globals = dict(self._compiled.globals)  # copied for every row: jinja's own are slow to copy

    @cached_property
    def text_arguments(self) -> bool:
        """Whether the arguments of a tool call must be given as JSON text: as an object the template breaks on them, or
        writes them as Python does."""
        function = {"name": "f", "arguments": {"a": _ARGUMENT}}
        called = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}
        try:
            return f"'{_ARGUMENT}'" in self.render([{"role": "user", "content": "?"}, called])
        except TemplateFault:
            function["arguments"] = json.dumps(function["arguments"])
        try:
            return bool(self.render([{"role": "user", "content": "?"}, called]))
        except TemplateFault:
            return False

    def render(
        self,
        messages: Sequence[MessageDict],
        *,
        tools: Sequence[MessageDict] = (),
        add_generation_prompt: bool = False,
    ) -> str:
        """The conversation as text, with the JSON schemas of its ``tools``.

        Raises:
            TemplateFault: the template refuses it, or breaks on it.
        """
        text = self._rendered(messages, tools, add_generation_prompt)
        return _BRACKETS.sub("", text) if self.marks_answers else text

    def render_marked(
        self, messages: Sequence[MessageDict], tools: Sequence[MessageDict] = ()
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the [start, end) characters that ``{% generation %}`` blocks wrote. Raises as ``render``."""
        pieces = _BRACKETS.split(self._rendered(messages, tools, add_generation_prompt=False))
        spans, start, length = [], 0, 0
        for piece in pieces:
            if piece == OPEN:
                start = length
            elif piece == CLOSE:
                spans.append((start, length))
            else:
                length += len(piece)
        return "".join(pieces[::2]), spans

    def _rendered(
        self, messages: Sequence[MessageDict], tools: Sequence[MessageDict], add_generation_prompt: bool
    ) -> str:
        given = self._variables | ({"tools": [*tools]} if tools else {})
        try:
            with time_limit(MOST_SECONDS):
                return self._compiled.render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
        except TookTooLong as error:
            raise UserError(
                f"the chat template does not end: over {MOST_SECONDS:.0f} s for one conversation",
                "--chat-template chatml",
            ) from error
        except Exception as error:  # a template is somebody's program: it may fail in any way
            raise TemplateFault(str(error) or type(error).__name__) from error


def _environment(today: date | None) -> "Environment":
    """Sandboxed, as templates come from strangers; white space and extras as transformers sets them."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        now = datetime.now()
        return (datetime.combine(today, now.time()) if today else now).strftime(form)

    class Environment(ImmutableSandboxedEnvironment):
        """Where no product takes all of the memory."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and abs(right) > MOST_POWER:
                raise TemplateError(f"a power of {right}")
            for one, other in ((left, right), (right, left)):
                if hasattr(one, "__len__") and isinstance(other, int) and len(one) * other > MOST_REPEATED:
                    raise TemplateError(f"a text repeated {other:,} times")
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_generation_extension(), loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja's own filter would escape HTML characters."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _generation_extension() -> Any:
    """The ``{% generation %}`` tag, which puts brackets around what it holds."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  (jinja reads it from the class)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_bracketed"), [], [], body).set_lineno(line)

        def _bracketed(self, caller: Any) -> str:
            return f"{OPEN}{caller()}{CLOSE}"

    return Generation
