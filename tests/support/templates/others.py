"""Templates written in words, in brackets, or with more than one part to an answer."""

from typing import Any

from support.templates.building import (
    ALTERNATION,
    CHECK_ALTERNATION,
    CHECK_SYSTEM,
    LEFT_OUT,
    NO_SYSTEM,
    KnownTemplate,
    turns,
)

_S: dict[str, Any] = {"stops": ("</s>",), "bos": "<s>"}
_ALTERNATING = {**LEFT_OUT, **ALTERNATION}
_INST: dict[str, Any] = {"user": "[INST] {c} [/INST]", "begins": "«", "ends": "{eos}»", "prompt": ""}
_SYS = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}"
    "{%- set opening = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' -%}"
    "{%- set messages = messages[1:] -%}"
    "{%- else -%}{%- set opening = '' -%}{%- endif -%}"
)
_LAST_SYSTEM = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}{%- set opening = messages[0].content + '\\n\\n' -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set opening = '' -%}{%- endif -%}"
    "{%- set ns = namespace(last=-1) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}"
    "{%- endif -%}{%- endfor -%}"
)


def _opening(text: str, where: str) -> str:
    return text.replace(
        "{{- '[INST] ' -}}{{- m.content -}}", "{{- '[INST] ' + (opening if " + where + " else '') -}}{{- m.content -}}"
    )


def _simple(
    user: str, begins: str, ends: str, prompt: str, system: str = "", start: str = "", **known: Any
) -> KnownTemplate:
    text = turns(user=user, begins=begins, ends=ends, prompt=prompt, system=system, start=start)
    return KnownTemplate(text, **{**_S, **known})


_BOS = "{{- bos_token -}}"
_HARMONY = (
    "{{- '<|start|>system<|message|>You are ChatGPT.<|end|>' -}}"
    "{%- if tools -%}{{- '<|start|>developer<|message|>' + (tools | tojson) + '<|end|>' -}}{%- endif -%}"
    "{%- for m in messages -%}{%- if m.role == 'system' -%}"
    "{{- '<|start|>developer<|message|>' + m.content + '<|end|>' -}}"
    "{%- elif m.role == 'user' -%}{{- '<|start|>user<|message|>' + m.content + '<|end|>' -}}"
    "{%- elif m.role == 'tool' -%}{{- '<|start|>functions<|message|>' + m.content + '<|end|>' -}}"
    "{%- elif m.tool_calls -%}{%- if m.tool_calls | length > 1 -%}"
    "{{- raise_exception('one call at a time') -}}{%- endif -%}"
    "{%- set call = m.tool_calls[0].function -%}"
    "{{- '<|start|>assistant« to=functions.' + call.name + '<|channel|>commentary json<|message|>' -}}"
    "{{- (call.arguments | tojson) + '<|call|>»' -}}"
    "{%- else -%}{{- '<|start|>assistant«' -}}"
    "{%- if loop.last and m.thinking -%}"
    "{{- '<|channel|>analysis<|message|>' + m.thinking + '<|end|><|start|>assistant' -}}"
    "{%- endif -%}{{- '<|channel|>final<|message|>' + m.content -}}"
    "{%- if loop.last -%}{{- '<|return|>»' -}}{%- else -%}{{- '»<|end|>' -}}{%- endif -%}"
    "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
_LAST_IN_LINE = "{%- if loop.last -%}{{- eos_token + '»' -}}{%- else -%}{{- eos_token + '»\\n' -}}{%- endif -%}"

OTHER_TEMPLATES = {
    "llama2": KnownTemplate(
        _opening(turns(**_INST, start=_SYS + CHECK_ALTERNATION), "loop.first"), refuses=_ALTERNATING, **_S
    ),
    "llama2-spaced": KnownTemplate(
        turns(
            user="[INST] {c} [/INST]", begins="« ", ends=" {eos}»", prompt="", start=CHECK_SYSTEM + CHECK_ALTERNATION
        ),
        refuses={**_ALTERNATING, **NO_SYSTEM},
        **_S,
    ),
    "mistral-v0.1": KnownTemplate(
        turns(**_INST, start=_BOS + CHECK_SYSTEM + CHECK_ALTERNATION), refuses={**_ALTERNATING, **NO_SYSTEM}, **_S
    ),
    "mistral-v0.3": KnownTemplate(
        _opening(turns(**_INST, start=_LAST_SYSTEM + CHECK_ALTERNATION), "loop.index0 == ns.last"),
        refuses=_ALTERNATING,
        **_S,
    ),
    "mistral-nemo": KnownTemplate(
        _opening(
            turns(**{**_INST, "user": "[INST] {c}[/INST]"}, start=_LAST_SYSTEM + CHECK_ALTERNATION),
            "loop.index0 == ns.last",
        ),
        refuses=_ALTERNATING,
        **_S,
    ),
    "mistral-small": _simple("[INST]{c}[/INST]", "«", "{eos}»", "", "[SYSTEM_PROMPT]{c}[/SYSTEM_PROMPT]", _BOS),
    "mixtral": _simple(
        "[INST] {c} [/INST]",
        "« ",
        "{eos}»",
        "",
        start=_BOS,
        refuses={**LEFT_OUT, "system": "leaves out message 1 .system", "system inside": "leaves out message"},
    ),
    "zephyr": _simple(
        "<|user|>\n{c}{eos}\n", "<|assistant|>\n«", "{eos}»\n", "<|assistant|>\n", "<|system|>\n{c}{eos}\n"
    ),
    "tinyllama": _simple(
        "<|user|>\n{c}{eos}\n", "<|assistant|>«\n", "{eos}»\n", "<|assistant|>", "<|system|>\n{c}{eos}\n"
    ),
    "stablelm": _simple(
        "<|user|>\n{c}{eos}\n", "<|assistant|>\n«", "{eos}»\n", "<|assistant|>\n", "{c}\n", stops=("<|endoftext|>",)
    ),
    "vicuna": _simple("USER: {c} ", "ASSISTANT:« ", "{eos}»", "ASSISTANT:", "{c} ", _BOS),
    "alpaca": _simple(
        "### Instruction:\n{c}\n\n", "### Response:\n«", "{eos}»\n\n", "### Response:\n", "{c}\n\n", _BOS
    ),
    "solar": _simple(
        "### User:\n{c}\n\n", "### Assistant:\n«", "{eos}»\n\n", "### Assistant:\n", "### System:\n{c}\n\n"
    ),
    "openchat": _simple(
        "GPT4 Correct User: {c}<|end_of_turn|>",
        "GPT4 Correct Assistant:« ",
        "<|end_of_turn|>»",
        "GPT4 Correct Assistant:",
        "{c}<|end_of_turn|>",
        _BOS,
        stops=("<|end_of_turn|>",),
    ),
    "falcon": _simple(
        "User: {c}\n", "Falcon:« ", "»\n", "Falcon:", "{c}\n", stops=("<|endoftext|>",), appended="<|endoftext|>"
    ),
    "falcon3": _simple(
        "<|user|>\n{c}\n",
        "<|assistant|>\n«",
        "{eos}»\n",
        "<|assistant|>\n",
        "<|system|>\n{c}\n",
        stops=("<|endoftext|>",),
    ),
    "deepseek-llm": _simple("User: {c}\n\n", "Assistant:« ", "{eos}»", "Assistant:", "{c}\n\n", _BOS),
    "baichuan2": _simple("<reserved_106>{c}", "<reserved_107>«", "»", "<reserved_107>", "{c}", appended="</s>"),
    "ernie4.5": _simple(
        "User: {c}\n",
        "Assistant: «",
        "<|end_of_sentence|>»",
        "Assistant: ",
        "{c}\n",
        _BOS,
        stops=("<|end_of_sentence|>",),
    ),
    "tulu": KnownTemplate(
        turns(
            user="<|user|>\n{c}\n",
            begins="<|assistant|>\n«",
            calls=_LAST_IN_LINE,
            ends="",
            prompt="<|assistant|>\n",
            system="<|system|>\n{c}\n",
        ),
        **_S,
    ),
    "olmo": KnownTemplate(
        turns(
            user="<|user|>\n{c}\n",
            begins="<|assistant|>\n«",
            calls=_LAST_IN_LINE,
            ends="",
            prompt="<|assistant|>\n",
            system="<|system|>\n{c}\n",
            start=_BOS,
        ),
        ("<|endoftext|>",),
        bos="<|endoftext|>",
    ),
    "gpt-oss": KnownTemplate(
        _HARMONY,
        ("<|return|>", "<|endoftext|>", "<|call|>"),
        refuses={"two calls": "refuses: one call at a time"},
    ),
    "only-the-last-ends": KnownTemplate(
        turns(
            user="Q: {c}\n",
            begins="A:« ",
            ends="\n",
            prompt="A:",
            system="{c}\n",
            calls="{%- if loop.last -%}{{- eos_token + '»' -}}{%- else -%}{{- '»' -}}{%- endif -%}",
        ),
        **_S,
    ),
    "bare-lines": _simple("{c}\n", "«", "{eos}»\n", "", "{c}\n"),
}
