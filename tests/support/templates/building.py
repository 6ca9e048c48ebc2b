"""Templates made of turns. What the model writes itself stands between ``OPENS`` and ``CLOSES``, which are taken out
again before a template is used."""

import re
from collections.abc import Mapping
from typing import NamedTuple

OPENS, CLOSES = "«", "»"
LEFT_OUT = {
    "tools": "leaves out the tools",
    "calls": r"leaves out the tool calls|leaves out message \d \(tool\)|leaves out the tools",
    "reasoning": "leaves out the reasoning",
}
ALTERNATION = dict.fromkeys(("assistant first", "assistant twice", "system inside", "calls"), "must alternate")
NO_SYSTEM = {"system": "refuses: System role not supported", "system inside": "refuses: System role not supported"}


class KnownTemplate(NamedTuple):
    """A template's text with the marks, its tokens, and what it refuses.

    ``stops`` are the tokens that the model's settings stop on, the eos token first. ``appended`` is what has to be put
    behind a last answer, ``behind_call`` behind a last tool call. ``refuses`` maps what a conversation holds to the
    reason in words. ``text_arguments``: it joins the arguments of a call to text, so that they must be text themselves.
    """

    marked: str
    stops: tuple[str, ...]
    bos: str = ""
    appended: str = ""
    refuses: Mapping[str, str] = LEFT_OUT
    text_arguments: bool = False

    @property
    def source(self) -> str:
        """The template as a model folder holds it."""
        return self.marked.replace(OPENS, "").replace(CLOSES, "")


CHECK_ALTERNATION = (
    "{%- set rest = messages[1:] if messages[0].role == 'system' else messages -%}"
    "{%- for m in rest -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('roles must alternate user/assistant') -}}{%- endif -%}{%- endfor -%}"
)
CHECK_SYSTEM = (
    "{%- for m in messages -%}{%- if m.role == 'system' -%}"
    "{{- raise_exception('System role not supported') -}}{%- endif -%}{%- endfor -%}"
)
LAST_QUESTION = (
    "{%- set ns = namespace(last=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}"
    "{%- endif -%}{%- endfor -%}"
)
XML_CALLS = (
    '{%- for call in m.tool_calls or [] -%}{{- \'\\n<tool_call>\\n{"name": "\' + call.function.name'
    " + '\", \"arguments\": ' + (call.function.arguments | tojson) + '}\\n</tool_call>' -}}{%- endfor -%}"
)
PARAMETER_CALLS = (
    "{%- for call in m.tool_calls or [] -%}{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' -}}"
    "{%- for key, value in call.function.arguments.items() -%}{{- '<parameter=' + key + '>\\n' -}}"
    "{{- value if value is string else value | tojson -}}{{- '\\n</parameter>\\n' -}}{%- endfor -%}"
    "{{- '</function>\\n</tool_call>' -}}{%- endfor -%}"
)
XML_TOOLS = (
    "{%- if tools -%}{{- '<|im_start|>system\\n# Tools\\n<tools>' -}}"
    "{%- for tool in tools -%}{{- '\\n' + (tool | tojson) -}}{%- endfor -%}"
    "{{- '\\n</tools><|im_end|>\\n' -}}{%- endif -%}"
)
_PLACES = re.compile(r"(\{c\}|\{eos\}|\{bos\}|\{»\})")
_WRITTEN = {"{eos}": "{{- eos_token -}}", "{bos}": "{{- bos_token -}}"}
_WRITTEN["{»}"] = "{%- if loop.previtem is defined and loop.previtem.role == 'assistant' -%}{{- '»' -}}{%- endif -%}"


def literal(text: str, content: str = "m.content") -> str:
    """Jinja that writes a text; ``{c}`` is the content, ``{»}`` the mark where an answer stands in front."""
    pieces = _PLACES.split(text)
    written = _WRITTEN | {"{c}": f"{{{{- {content} -}}}}"}
    return "".join(written.get(piece) or "{{- " + repr(piece) + " -}}" for piece in pieces if piece)


def turns(
    *,
    user: str,
    begins: str,
    ends: str,
    prompt: str,
    system: str = "",
    tool: str = "",
    start: str = "",
    tools: str = "",
    think: str = "",
    calls: str = "",
    trim: bool = False,
) -> str:
    """A template of turns: an answer is what ``begins`` it, ``think``, its content, its ``calls`` and what ``ends`` it.

    ``start``, ``tools``, ``think`` and ``calls`` are jinja; the others texts for ``literal``. A role without a text is
    left out.
    """
    content = "m.content | trim" if trim else "m.content"
    answer = literal(begins) + think + literal("{c}", content) + calls + literal(ends)
    roles = {"user": user, "system": system, "tool": tool}
    others = "".join(
        f"{{%- elif m.role == '{role}' -%}}{literal(text, content)}" for role, text in roles.items() if text
    )
    body = f"{{%- if m.role == 'assistant' -%}}{answer}{others}{{%- endif -%}}"
    asking = f"{{%- if add_generation_prompt -%}}{literal(prompt)}{{%- endif -%}}" if prompt else ""
    return f"{start}{tools}{{%- for m in messages -%}}{body}{{%- endfor -%}}{asking}"


def refusing(*taken: str, **more: str) -> dict[str, str]:
    """What a template refuses: reasoning, tools and calls but the ``taken``, and ``more`` (_ for a space)."""
    kept = {name: reason for name, reason in LEFT_OUT.items() if name not in taken}
    return kept | {name.replace("_", " "): reason for name, reason in more.items()}
