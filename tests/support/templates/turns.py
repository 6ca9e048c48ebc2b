"""Templates with role tokens or words of their own around each message."""

from typing import Any

from support.templates.building import (
    ALTERNATION,
    CHECK_ALTERNATION,
    CHECK_SYSTEM,
    LAST_QUESTION,
    LEFT_OUT,
    NO_SYSTEM,
    KnownTemplate,
    refusing,
    turns,
)

_LLAMA3: dict[str, Any] = {
    "system": "<|start_header_id|>system<|end_header_id|>\n\n{c}<|eot_id|>",
    "user": "<|start_header_id|>user<|end_header_id|>\n\n{c}<|eot_id|>",
    "tool": "<|start_header_id|>ipython<|end_header_id|>\n\n{c}<|eot_id|>",
    "begins": "<|start_header_id|>assistant<|end_header_id|>\n\n«",
    "ends": "<|eot_id|>»",
    "prompt": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "trim": True,
}
_LLAMA3_ENDS = ("<|eot_id|>", "<|end_of_text|>")
_LLAMA31_START = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}{%- set first = messages[0].content | trim -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- endif -%}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + DATE + '\\n\\n' -}}"
    "{%- if tools -%}{{- tools | tojson(indent=4) -}}{%- endif -%}{{- first + '<|eot_id|>' -}}"
    "{%- for m in messages -%}{%- if m.tool_calls and m.tool_calls | length != 1 -%}"
    "{{- raise_exception('This model only supports single tool-calls at once!') -}}{%- endif -%}{%- endfor -%}"
)
_LLAMA31_CALLS = (
    '{%- for call in m.tool_calls or [] -%}{{- \'{"name": "\' + call.function.name + \'", "parameters": \''
    " + (call.function.arguments | tojson) + '}' -}}{%- endfor -%}"
)
_LLAMA31_REFUSES = {"reasoning": LEFT_OUT["reasoning"], "two calls": "refuses: This model only supports single"}


def _llama31(date: str) -> KnownTemplate:
    text = turns(**_LLAMA3, start=_LLAMA31_START.replace("DATE", date), calls=_LLAMA31_CALLS)
    return KnownTemplate(text, _LLAMA3_ENDS, bos="<|begin_of_text|>", refuses=_LLAMA31_REFUSES)


_LLAMA4: dict[str, Any] = {
    name: text.replace("<|start_header_id|>", "<|header_start|>")
    .replace("<|end_header_id|>", "<|header_end|>")
    .replace("<|eot_id|>", "<|eot|>")
    if isinstance(text, str)
    else text
    for name, text in _LLAMA3.items()
}
_GEMMA: dict[str, Any] = {
    "user": "<start_of_turn>user\n{c}<end_of_turn>\n",
    "begins": "<start_of_turn>model\n«",
    "ends": "<end_of_turn>»\n",
    "prompt": "<start_of_turn>model\n",
    "trim": True,
}
_FOLDS = (
    "{%- if messages[0].role == 'system' -%}{%- set opening = messages[0].content + '\\n\\n' -%}"
    "{%- set messages = messages[1:] -%}{%- else -%}{%- set opening = '' -%}{%- endif -%}"
)


def _folded(text: str) -> str:
    """The template with the system message in front of the first user message."""
    return text.replace("{{- m.content | trim -}}", "{{- (opening if loop.first else '') -}}{{- m.content | trim -}}")


_PHI3: dict[str, Any] = {
    "system": "<|system|>\n{c}<|end|>\n",
    "user": "<|user|>\n{c}<|end|>\n",
    "begins": "<|assistant|>\n«",
    "ends": "<|end|>»\n",
    "prompt": "<|assistant|>\n",
}
_PHI4_MINI: dict[str, Any] = {name: text.replace("\n", "") for name, text in _PHI3.items()}
_DEEPSEEK: dict[str, Any] = {
    "user": "<｜User｜>{c}",
    "begins": "<｜Assistant｜>«",
    "ends": "<｜end▁of▁sentence｜>»",
    "prompt": "<｜Assistant｜>",
}
_DEEPSEEK_ENDS = ("<｜end▁of▁sentence｜>",)
_DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"
# All system messages stand in front, wherever they were given
_HOISTS = (
    "{{- bos_token -}}{%- for m in messages -%}{%- if m.role == 'system' -%}{{- m.content -}}"
    "{%- endif -%}{%- endfor -%}"
)
_MOVES = refusing(system_inside="moves message")
_TEXT_CALLS = (
    "{%- for call in m.tool_calls or [] -%}"
    "{{- '<｜tool▁call▁begin｜>' + call.function.name + '\\n' + call.function.arguments"
    " + '<｜tool▁call▁end｜>' -}}{%- endfor -%}"
)
_DROPS_THOUGHT = "{%- set content = m.content.split('</think>')[-1] -%}"
_GLM: dict[str, Any] = {
    "system": "{»}<|system|>\n{c}",
    "user": "<|user|>{»}\n{c}",
    "tool": "<|observation|>{»}\n{c}",
    "begins": "{»}<|assistant|>\n«",
    "ends": "",
    "prompt": "<|assistant|>\n",
}
_GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
_GLM_CALLS = (
    "{%- for call in m.tool_calls or [] -%}"
    "{{- '<tool_call>' + call.function.name + '\\n' + (call.function.arguments | tojson)"
    " + '</tool_call>' -}}{%- endfor -%}"
)
_GLM_TOOLS = "{%- if tools -%}{{- '<|system|>\\n' + (tools | tojson) -}}{%- endif -%}"
_GRANITE: dict[str, Any] = {
    "system": "<|start_of_role|>system<|end_of_role|>{c}<|end_of_text|>\n",
    "user": "<|start_of_role|>user<|end_of_role|>{c}<|end_of_text|>\n",
    "tool": "<|start_of_role|>tool<|end_of_role|>{c}<|end_of_text|>\n",
    "begins": "<|start_of_role|>assistant<|end_of_role|>«",
    "ends": "<|end_of_text|>»\n",
    "prompt": "<|start_of_role|>assistant<|end_of_role|>",
}
_GRANITE_DEFAULT = (
    "{%- if messages[0].role != 'system' -%}{{- '<|start_of_role|>system<|end_of_role|>You are Granite. Today is '"
    " + strftime_now('%B %d, %Y') + '.<|end_of_text|>\\n' -}}{%- endif -%}"
)
_GRANITE_CALLS = (
    "{%- if m.tool_calls -%}"
    "{{- '<|tool_call|>' + (m.tool_calls | map(attribute='function') | list | tojson) -}}{%- endif -%}"
)
_GRANITE_TOOLS = (
    "{%- if tools -%}"
    "{{- '<|start_of_role|>available_tools<|end_of_role|>' + (tools | tojson) + '<|end_of_text|>\\n' -}}"
    "{%- endif -%}"
)
_COMMAND: dict[str, Any] = {
    "system": "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{c}<|END_OF_TURN_TOKEN|>",
    "user": "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{c}<|END_OF_TURN_TOKEN|>",
    "begins": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>«",
    "ends": "<|END_OF_TURN_TOKEN|>»",
    "prompt": "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
}
_COMMAND_A = {
    **_COMMAND,
    "begins": _COMMAND["begins"] + "<|START_RESPONSE|>",
    "ends": "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>»",
}
_SEED: dict[str, Any] = {
    "system": "<seed:bos>system\n{c}<seed:eos>",
    "user": "<seed:bos>user\n{c}<seed:eos>",
    "tool": "<seed:bos>tool\n{c}<seed:eos>",
    "begins": "<seed:bos>assistant\n«",
    "ends": "<seed:eos>»",
    "prompt": "<seed:bos>assistant\n",
    "think": (
        "{%- if m.reasoning_content -%}{{- '<seed:think>' + m.reasoning_content + '</seed:think>' -}}{%- endif -%}"
    ),
}
_EXAONE: dict[str, Any] = {
    "system": "[|system|]{c}[|endofturn|]\n",
    "user": "[|user|]{c}[|endofturn|]\n",
    "begins": "[|assistant|]«",
    "ends": "[|endofturn|]»\n",
    "prompt": "[|assistant|]",
}
_MINIMAX: dict[str, Any] = {
    "system": "]~b]system\n{c}[e~[\n",
    "user": "]~b]user\n{c}[e~[\n",
    "tool": "]~b]tool\n{c}[e~[\n",
    "begins": "]~b]ai\n",
    "ends": "[e~[»\n",
    "prompt": "]~b]ai\n<think>\n",
    "think": (
        "{%- if m.reasoning_content and loop.index0 > ns.last -%}"
        "{{- '<think>\\n«' + m.reasoning_content + '\\n</think>\\n\\n' -}}{%- else -%}{{- '«' -}}{%- endif -%}"
    ),
}
_HUNYUAN: dict[str, Any] = {
    "system": "{c}<|extra_4|>",
    "user": "{c}<|extra_0|>",
    "begins": "«",
    "ends": "<|eos|>»",
    "prompt": "",
}
_NEMOTRON: dict[str, Any] = {
    "system": "<extra_id_0>System\n{c}\n",
    "user": "<extra_id_1>{»}User\n{c}\n",
    "calls": "{%- if loop.nextitem is defined and loop.nextitem.role == 'system' -%}{{- '»' -}}{%- endif -%}",
    "begins": "<extra_id_1>{»}Assistant\n«",
    "ends": "\n",
    "prompt": "<extra_id_1>Assistant\n",
}

TURN_TEMPLATES = {
    "llama3": KnownTemplate(turns(**_LLAMA3, start="{{- bos_token -}}"), _LLAMA3_ENDS, bos="<|begin_of_text|>"),
    "llama3.1": _llama31("'26 Jul 2024'"),
    "llama3.2": _llama31("strftime_now('%d %b %Y')"),
    "llama4": KnownTemplate(
        turns(**_LLAMA4, start="{{- bos_token -}}"), ("<|eot|>", "<|end_of_text|>"), bos="<|begin_of_text|>"
    ),
    "gemma": KnownTemplate(
        turns(**_GEMMA, start="{{- bos_token -}}" + CHECK_SYSTEM + CHECK_ALTERNATION),
        ("<eos>", "<end_of_turn>"),
        bos="<bos>",
        refuses={**LEFT_OUT, **ALTERNATION, **NO_SYSTEM},
    ),
    "gemma3": KnownTemplate(
        _folded(turns(**_GEMMA, start="{{- bos_token -}}" + _FOLDS + CHECK_ALTERNATION)),
        ("<eos>", "<end_of_turn>"),
        bos="<bos>",
        refuses={**LEFT_OUT, **ALTERNATION},
    ),
    "phi3": KnownTemplate(turns(**_PHI3), ("<|endoftext|>", "<|end|>")),
    "phi3-end-of-text": KnownTemplate(
        turns(**_PHI3) + "{%- if not add_generation_prompt -%}{{- eos_token -}}{%- endif -%}",
        ("<|endoftext|>", "<|end|>"),
    ),
    "phi4-mini": KnownTemplate(turns(**_PHI4_MINI), ("<|endoftext|>", "<|end|>")),
    "deepseek-v3": KnownTemplate(turns(**_DEEPSEEK, start=_HOISTS), _DEEPSEEK_ENDS, bos=_DEEPSEEK_BOS, refuses=_MOVES),
    "deepseek-v3-calls": KnownTemplate(
        turns(**_DEEPSEEK, start=_HOISTS, calls=_TEXT_CALLS, tool="<｜tool▁output｜>{c}", tools="{{- tools or '' -}}"),
        _DEEPSEEK_ENDS,
        bos=_DEEPSEEK_BOS,
        refuses=refusing("calls", "tools", system_inside="moves message"),
        text_arguments=True,
    ),
    "deepseek-r1": KnownTemplate(
        turns(**{**_DEEPSEEK, "prompt": "<｜Assistant｜><think>\n"}, start=_HOISTS, think=_DROPS_THOUGHT),
        _DEEPSEEK_ENDS,
        bos=_DEEPSEEK_BOS,
        refuses=_MOVES,
    ),
    "deepseek-v3.1": KnownTemplate(
        turns(
            **{**_DEEPSEEK, "begins": "<｜Assistant｜></think>«", "prompt": "<｜Assistant｜></think>"}, start=_HOISTS
        ),
        _DEEPSEEK_ENDS,
        bos=_DEEPSEEK_BOS,
        refuses=_MOVES,
    ),
    "glm4": KnownTemplate(
        turns(**_GLM, start="{{- '[gMASK]<sop>' -}}", tools=_GLM_TOOLS, calls=_GLM_CALLS),
        _GLM_ENDS,
        appended="<|user|>",
        refuses=refusing("tools", "calls"),
    ),
    "glm4.5": KnownTemplate(
        turns(
            **{**_GLM, "begins": "{»}<|assistant|>«"},
            start="{{- '[gMASK]<sop>' -}}" + LAST_QUESTION,
            tools=_GLM_TOOLS,
            calls=_GLM_CALLS,
            think="{%- if loop.index0 > ns.last and m.reasoning_content -%}"
            "{{- '\\n<think>' + m.reasoning_content + '</think>\\n' -}}{%- else -%}"
            "{{- '\\n<think></think>\\n' -}}{%- endif -%}",
        ).replace("{{- '<|assistant|>\\n' -}}{%- endif -%}", "{{- '<|assistant|>' -}}{%- endif -%}"),
        _GLM_ENDS,
        appended="<|user|>",
        refuses=refusing("tools", "calls", "reasoning"),
    ),
    "chatglm3": KnownTemplate(
        turns(
            **{name: text.replace("{»}", "") for name, text in _GLM.items()} | {"ends": "»"},
            start="{{- '[gMASK]<sop>' -}}",
        ),
        ("</s>",),
        appended="</s>",
    ),
    "granite3": KnownTemplate(turns(**_GRANITE, start=_GRANITE_DEFAULT), ("<|end_of_text|>",)),
    "granite4": KnownTemplate(
        turns(**_GRANITE, tools=_GRANITE_TOOLS, calls=_GRANITE_CALLS),
        ("<|end_of_text|>",),
        refuses=refusing("tools", "calls"),
    ),
    "command-r": KnownTemplate(
        turns(**_COMMAND, start="{{- bos_token -}}"), ("<|END_OF_TURN_TOKEN|>",), bos="<BOS_TOKEN>"
    ),
    "command-a": KnownTemplate(
        turns(**_COMMAND_A, start="{{- bos_token -}}"), ("<|END_OF_TURN_TOKEN|>",), bos="<BOS_TOKEN>"
    ),
    "seed-oss": KnownTemplate(turns(**_SEED), ("<seed:eos>",), refuses=refusing("reasoning")),
    "exaone": KnownTemplate(turns(**_EXAONE), ("[|endofturn|]",)),
    "minimax-m2": KnownTemplate(turns(**_MINIMAX, start=LAST_QUESTION), ("[e~[",), refuses=refusing("reasoning")),
    "hunyuan": KnownTemplate(turns(**_HUNYUAN, start="{{- bos_token -}}"), ("<|eos|>",), bos="<|startoftext|>"),
    "nemotron4": KnownTemplate(turns(**_NEMOTRON), ("<|endoftext|>", "<extra_id_1>"), appended="<extra_id_1>"),
}
