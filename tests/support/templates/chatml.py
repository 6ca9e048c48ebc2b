"""Templates with ``<|im_start|>`` and what grew out of them."""

from typing import Any

from support.templates.building import (
    LAST_QUESTION,
    PARAMETER_CALLS,
    XML_CALLS,
    XML_TOOLS,
    KnownTemplate,
    refusing,
    turns,
)

IM_END = ("<|im_end|>", "<|endoftext|>")
_ANSWER = "<|im_start|>assistant\n"
_TURNS: dict[str, Any] = {
    "system": "<|im_start|>system\n{c}<|im_end|>\n",
    "user": "<|im_start|>user\n{c}<|im_end|>\n",
    "tool": "<|im_start|>user\n<tool_response>\n{c}\n</tool_response><|im_end|>\n",
    "begins": _ANSWER + "«",
    "ends": "<|im_end|>»\n",
    "prompt": _ANSWER,
}
_BY_NAME = {**_TURNS, "tool": "<|im_start|>tool\n{c}<|im_end|>\n"}
_TOOLS = {**_TURNS, "tools": XML_TOOLS, "calls": XML_CALLS}
_TAKES_TOOLS = refusing("tools", "calls")
_TAKES_ALL = refusing("tools", "calls", "reasoning")
_THOUGHT = "(m.reasoning_content or '').strip('\\n')"


def _default(text: str) -> str:
    return (
        "{%- if messages[0].role != 'system' -%}{{- '<|im_start|>system\\n" + text + "<|im_end|>\\n' -}}{%- endif -%}"
    )


def _thinks(where: str, block: str, otherwise: str = "") -> str:
    return f"{{%- if {where} -%}}{{{{- {block} -}}}}{{%- else -%}}{{{{- '{otherwise}' -}}}}{{%- endif -%}}"


_QWEN3 = _thinks(
    "loop.index0 > ns.last and (loop.last or m.reasoning_content)",
    f"'<think>\\n' + {_THOUGHT} + '\\n</think>\\n\\n'",
)
_OPENED = {**_TOOLS, "begins": _ANSWER, "prompt": _ANSWER + "<think>\n"}
_OPENED_LAST = _thinks("loop.index0 > ns.last", f"'<think>\\n«' + {_THOUGHT} + '\\n</think>\\n\\n'", "«")
_OPENED_ALL = f"{{{{- '<think>\\n«' + {_THOUGHT} + '\\n</think>\\n\\n' -}}}}"
_SYSTEM_FIRST = (
    "{%- for m in messages -%}{%- if m.role == 'system' and not loop.first -%}"
    "{{- raise_exception('System message must be at the beginning.') -}}{%- endif -%}{%- endfor -%}"
)
_DATED = "{{- '<|im_start|>system\\nToday: ' + strftime_now('%d %B %Y') + '<|im_end|>\\n' -}}"
_KIMI: dict[str, Any] = {
    "system": "<|im_system|>system<|im_middle|>{c}<|im_end|>",
    "user": "<|im_user|>user<|im_middle|>{c}<|im_end|>",
    "tool": "<|im_system|>tool<|im_middle|>{c}<|im_end|>",
    "begins": "<|im_assistant|>assistant<|im_middle|>«",
    "ends": "<|im_end|>»",
    "prompt": "<|im_assistant|>assistant<|im_middle|>",
}
_KIMI_CALLS = (
    "{%- if m.tool_calls -%}{{- '<|tool_calls_section_begin|>' -}}{%- for call in m.tool_calls -%}"
    "{{- '<|tool_call_begin|>functions.' + call.function.name + ':' + loop.index0 | string -}}"
    "{{- '<|tool_call_argument_begin|>' -}}"
    "{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson -}}"
    "{{- '<|tool_call_end|>' -}}{%- endfor -%}{{- '<|tool_calls_section_end|>' -}}{%- endif -%}"
)
_KIMI_TOOLS = (
    "{%- if tools -%}{{- '<|im_system|>tool_declare<|im_middle|>' + (tools | tojson) + '<|im_end|>' -}}{%- endif -%}"
)
_PHI4: dict[str, Any] = {
    "system": "<|im_start|>system<|im_sep|>{c}<|im_end|>",
    "user": "<|im_start|>user<|im_sep|>{c}<|im_end|>",
    "begins": "<|im_start|>assistant<|im_sep|>«",
    "ends": "<|im_end|>»",
    "prompt": "<|im_start|>assistant<|im_sep|>",
}
_LFM_TOOLS = (
    "{{- bos_token -}}{%- if tools -%}"
    "{{- '<|im_start|>system\\nList of tools: <|tool_list_start|>' + (tools | tojson)"
    " + '<|tool_list_end|><|im_end|>\\n' -}}{%- endif -%}"
)
_MARKED_ANSWERS = {
    **_TURNS,
    "begins": "",
    "think": "{%- generation -%}{{- '<|im_start|>assistant\\n«' -}}"
    + _thinks("m.reasoning_content", f"'<think>\\n' + {_THOUGHT} + '\\n</think>\\n'", "<think>\\n\\n</think>\\n"),
    "ends": "<|im_end|>»\n",
    "calls": XML_CALLS,
}


def _smollm3() -> str:
    text = turns(**_MARKED_ANSWERS, tools=XML_TOOLS, start=_DATED)
    closing = "{{- '<|im_end|>»\\n' -}}"
    return text.replace(closing, closing + "{%- endgeneration -%}", 1)


CHATML_TEMPLATES = {
    "chatml": KnownTemplate(turns(**_BY_NAME), IM_END),
    "chatml-base-eos": KnownTemplate(turns(**_BY_NAME), ("<|endoftext|>",)),
    "chatml-trimming": KnownTemplate(turns(**_TURNS, trim=True), IM_END),
    "chatml-end-of-text-at-the-end": KnownTemplate(
        turns(**_BY_NAME) + "{%- if not add_generation_prompt -%}{{- '<|endoftext|>' -}}{%- endif -%}", IM_END
    ),
    "yi": KnownTemplate(turns(**_TURNS), ("<|im_end|>",)),
    "internlm2": KnownTemplate(turns(**_BY_NAME, start="{{- bos_token -}}"), ("</s>", "<|im_end|>"), bos="<s>"),
    "stablelm2": KnownTemplate(turns(**_TURNS, start="{{- bos_token -}}"), IM_END, bos="<|endoftext|>"),
    "qwen2": KnownTemplate(turns(**_TURNS, start=_default("You are a helpful assistant.")), IM_END),
    "qwen2-vl": KnownTemplate(turns(**_TURNS, start=_default("You are a helpful assistant.")), IM_END),
    "qwen2.5": KnownTemplate(turns(**_TOOLS, start=_default("You are Qwen.")), IM_END, refuses=_TAKES_TOOLS),
    "qwen2.5-math": KnownTemplate(turns(**_TURNS, start=_default("Reason step by step.")), IM_END),
    "qwen3": KnownTemplate(turns(**_TOOLS, start=LAST_QUESTION, think=_QWEN3), IM_END, refuses=_TAKES_ALL),
    "qwen3-2507": KnownTemplate(turns(**_TOOLS), IM_END, refuses=_TAKES_TOOLS),
    "qwen3-thinking-2507": KnownTemplate(
        turns(**_OPENED, start=LAST_QUESTION, think=_OPENED_LAST), IM_END, refuses=_TAKES_ALL
    ),
    "qwen3-coder": KnownTemplate(turns(**{**_TOOLS, "calls": PARAMETER_CALLS}), IM_END, refuses=_TAKES_TOOLS),
    "qwen3.5": KnownTemplate(
        turns(**{**_OPENED, "calls": PARAMETER_CALLS}, start=LAST_QUESTION + _SYSTEM_FIRST, think=_OPENED_LAST),
        IM_END,
        refuses=refusing("tools", "calls", "reasoning", system_inside="refuses: System message must be at the"),
    ),
    "qwen3.6": KnownTemplate(
        turns(**{**_OPENED, "calls": PARAMETER_CALLS}, think=_OPENED_ALL), IM_END, refuses=_TAKES_ALL
    ),
    "qwq": KnownTemplate(turns(**{**_OPENED, "begins": _ANSWER + "«"}), IM_END, refuses=_TAKES_TOOLS),
    "smollm2": KnownTemplate(turns(**_TURNS, start=_default("You are SmolLM.")), IM_END),
    "smollm3": KnownTemplate(_smollm3(), IM_END, refuses=_TAKES_ALL),
    "hermes": KnownTemplate(
        turns(**{**_TOOLS, "tool": "<|im_start|>tool\n{c}<|im_end|>\n"}), IM_END, refuses=_TAKES_TOOLS
    ),
    "lfm2": KnownTemplate(turns(**_BY_NAME, tools=_LFM_TOOLS), IM_END, bos="<s>", refuses=refusing("tools")),
    "minicpm": KnownTemplate(turns(**_TURNS, start="{{- bos_token -}}"), ("</s>", "<|im_end|>"), bos="<s>"),
    "falcon-h1": KnownTemplate(
        turns(**_BY_NAME, start="{{- bos_token -}}"), ("<|endoftext|>", "<|im_end|>"), bos="<s>"
    ),
    "nemotron-3": KnownTemplate(
        turns(**{**_OPENED, "calls": PARAMETER_CALLS}, think=_OPENED_ALL), ("<|im_end|>",), refuses=_TAKES_ALL
    ),
    "kimi-k2": KnownTemplate(
        turns(**_KIMI, tools=_KIMI_TOOLS, calls=_KIMI_CALLS), ("<|im_end|>",), refuses=_TAKES_TOOLS
    ),
    "kimi-k2-thinking": KnownTemplate(
        turns(
            **_KIMI,
            tools=_KIMI_TOOLS,
            calls=_KIMI_CALLS,
            think="{{- '<think>' + (m.reasoning_content or '') + '</think>' -}}",
        ),
        ("<|im_end|>",),
        refuses=_TAKES_ALL,
    ),
    "phi-4": KnownTemplate(turns(**_PHI4), ("<|im_end|>", "<|endoftext|>")),
    "chatml-without-a-prompt": KnownTemplate(turns(**{**_TURNS, "prompt": ""}), IM_END),
}
