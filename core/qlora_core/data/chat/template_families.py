"""Chat templates of our own, as data: one per model family, and how a tokenizer tells its family."""

from collections.abc import Collection
from typing import NamedTuple


class TemplateFamily(NamedTuple):
    """A chat template, the tokens that it needs, and the one that ends a message (``None``: the eos token)."""

    template: str
    needs: tuple[str, ...]
    stop: str | None


_CHATML_PROMPT = r"""
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""

_CHATML = (
    r"""
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
"""
    + _CHATML_PROMPT
)

# ChatML written with ordinary tokens: only the eos token is special, and every base model knows it
_PLAIN_CHATML = (
    r"""
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' + message.content + eos_token + '\n' -}}
{%- endfor -%}
"""
    + _CHATML_PROMPT
)

_TOOL_RESPONSE = r"""
{%- macro tool_response(message, before, after) -%}
    {%- if before is none or before.role != 'tool' -%}
        {{- '<|im_start|>user' -}}
    {%- endif -%}
    {{- '\n<tool_response>\n' + message.content + '\n</tool_response>' -}}
    {%- if after is none or after.role != 'tool' -%}
        {{- '<|im_end|>\n' -}}
    {%- endif -%}
{%- endmacro -%}
"""

_QWEN = (
    _TOOL_RESPONSE
    + r"""
{%- if messages[0].role != 'system' -%}
    {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {{- tool_response(message, loop.previtem | default(none), loop.nextitem | default(none)) -}}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
"""
    + _CHATML_PROMPT
)

# Thinking stays only after the last question; an answer without any gets an empty block
_QWEN3 = (
    _TOOL_RESPONSE
    + r"""
{%- set ns = namespace(last_question=-1) -%}
{%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {%- set ns.last_question = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set content = message.content -%}
    {%- if message.role == 'tool' -%}
        {{- tool_response(message, loop.previtem | default(none), loop.nextitem | default(none)) -}}
    {%- elif message.role == 'assistant' -%}
        {%- set thought = '' -%}
        {%- if '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- if loop.index0 > ns.last_question and (loop.last or thought) -%}
            {{- '<think>\n' + thought + '\n</think>\n\n' + content.lstrip('\n') -}}
        {%- else -%}
            {{- content -}}
        {%- endif -%}
        {{- '<|im_end|>\n' -}}
    {%- else -%}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' -}}
    {%- endif -%}
{%- endfor -%}
"""
    + _CHATML_PROMPT
)

_LLAMA3 = r"""
{{- bos_token -}}
{%- for message in messages -%}
    {%- set role = 'ipython' if message.role == 'tool' else message.role -%}
    {{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
{%- endif -%}
"""

# Gemma has no system message: its text opens the first user message
_GEMMA = r"""
{{- bos_token -}}
{%- set ns = namespace(opening='') -%}
{%- if messages[0].role == 'system' -%}
    {%- set ns.opening = messages[0].content | trim + '\n\n' -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message.role == 'assistant') != (loop.index0 % 2 == 1) -%}
        {{- raise_exception('user and assistant messages must alternate, a user message first') -}}
    {%- endif -%}
    {%- set role = 'model' if message.role == 'assistant' else 'user' -%}
    {{- '<start_of_turn>' + role + '\n' + ns.opening + message.content | trim + '<end_of_turn>\n' -}}
    {%- set ns.opening = '' -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\n' -}}
{%- endif -%}
"""

_PHI = r"""
{%- for message in messages -%}
    {%- set role = 'user' if message.role == 'tool' else message.role -%}
    {{- '<|' + role + '|>\n' + message.content + '<|end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>\n' -}}
{%- endif -%}
"""

_CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
TEMPLATE_FAMILIES: dict[str, TemplateFamily] = {
    "chatml": TemplateFamily(_CHATML, _CHATML_TOKENS, "<|im_end|>"),
    "qwen": TemplateFamily(_QWEN, _CHATML_TOKENS, "<|im_end|>"),
    "qwen3": TemplateFamily(_QWEN3, _CHATML_TOKENS, "<|im_end|>"),
    "llama3": TemplateFamily(_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "gemma": TemplateFamily(_GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "phi": TemplateFamily(_PHI, ("<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
}
PLAIN_CHATML = "chatml-eos"
PLAIN_TEMPLATE_FAMILY = TemplateFamily(_PLAIN_CHATML, (), None)
PICKED = ("chatml", "llama3", "gemma", "phi")

FAMILY_NAMES = {
    "chatml": "ChatML",
    "qwen": "Qwen's ChatML",
    "qwen3": "Qwen3's ChatML",
    "llama3": "Llama 3's template",
    "gemma": "Gemma's template",
    "phi": "Phi's template",
    PLAIN_CHATML: "ChatML in ordinary tokens",
}
"""What a person calls them."""


def pick_template_family(special_tokens: Collection[str], own: str | None = None) -> str:
    """The family whose turn markers the tokenizer has, the model's ``own`` first; ChatML in ordinary tokens where it
    has none."""
    names = (own, *PICKED) if own else PICKED
    return next((name for name in names if has_tokens(name, special_tokens)), PLAIN_CHATML)


def has_tokens(name: str, special_tokens: Collection[str]) -> bool:
    """Whether a tokenizer has all the tokens that a family's template is written with."""
    return all(token in special_tokens for token in TEMPLATE_FAMILIES[name].needs)


def template_family(name: str) -> TemplateFamily:
    """A template by its name, ``chatml-eos`` included."""
    return PLAIN_TEMPLATE_FAMILY if name == PLAIN_CHATML else TEMPLATE_FAMILIES[name]


def with_bos(template: str) -> str:
    """The template with the bos token in front, for tokenizers whose models always saw one."""
    return template if "bos_token" in template else "{{- bos_token -}}\n" + template
