"""Rows as a model reads them: the text that a template writes of their columns, and what of it is learned."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.masks import describe_mask

from qlora_core.data import ChatTokenizer, DataSet

Read = Callable[..., DataSet]
Folder = Callable[..., Path]
REASONING = """
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\n' -}}
{%- if message.reasoning_content is defined -%}
{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}{%- endif -%}
{{- message.content -}}
{%- for call in message.tool_calls or [] -%}
{{- '\n<tool_call>\n' + call.function | tojson + '\n</tool_call>' -}}{%- endfor -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif -%}
"""
DRAFTS = [
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "draft", **flag},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "final"},
        ]
    }
    for flag in ({"train": False}, {"weight": 0}, {"training": False}, {"trainable": False}, {"masked": 1})
]
FERRY = {
    "instruction": "When did the ferry line open?",
    "context": "The ferry was opened in 1931.",
    "response": "In 1931.",
    "category": "closed_qa",
}


@pytest.fixture(scope="module")
def qwen3(model_folder: Folder) -> ChatTokenizer:
    return ChatTokenizer.from_folder(model_folder("qwen3"), "qwen3")


@pytest.fixture(scope="module")
def llama3(model_folder: Folder) -> ChatTokenizer:
    return ChatTokenizer.from_folder(model_folder("llama3"), "llama3")


def masks(tokenizer: ChatTokenizer, data: DataSet) -> list[str]:
    return [describe_mask(tokenizer, tokenizer.encode(row)) for row in data.conversations]


def jsonl(*rows: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, rows))


def test_drafts_are_read_and_not_learned(read: Read, qwen3: ChatTokenizer, llama3: ChatTokenizer) -> None:
    data = read("a.jsonl", jsonl(*DRAFTS))
    assert masks(qwen3, data) == [
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\ndraft<|im_end|>\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nfinal<|im_end|>]]\n"
    ] * len(DRAFTS)
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    assert masks(llama3, data) == [
        f"<|begin_of_text|>{header('user')}a<|eot_id|>{header('assistant')}draft<|eot_id|>"
        f"{header('user')}b<|eot_id|>{header('assistant')}[[final<|eot_id|>]]"
    ] * len(DRAFTS)


def test_context_is_read_and_not_learned(read: Read, llama3: ChatTokenizer) -> None:
    header = "<|start_header_id|>{}<|end_header_id|>\n\n".format
    asked = "When did the ferry line open?"
    assert masks(llama3, read("a.jsonl", jsonl(FERRY, FERRY | {"context": "", "input": "The first."}))) == [
        f"<|begin_of_text|>{header('user')}{asked}\n\nThe ferry was opened in 1931.<|eot_id|>"
        f"{header('assistant')}[[In 1931.<|eot_id|>]]",
        f"<|begin_of_text|>{header('user')}{asked}\nThe first.<|eot_id|>{header('assistant')}[[In 1931.<|eot_id|>]]",
    ]


def test_history_and_system_prompt_are_read(read: Read, qwen3: ChatTokenizer) -> None:
    row = {"query": "b", "response": "d", "history": [["a", "c"]], "system_prompt": "Be kind."}
    assert masks(qwen3, read("a.jsonl", jsonl(row))) == [
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[[c<|im_end|>]]\n"
        "<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n[[<think>\n\n</think>\n\nd<|im_end|>]]\n"
    ]


def test_reasoning_and_calls_reach_a_template_that_knows_them(read: Read, model_folder: Folder) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=REASONING))
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "reasoning_content": "r", "content": "b"},
            ]
        },
        {"Question": "a", "Complex_CoT": "r", "Response": "b"},
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "8"},
                {"from": "gpt", "value": "b"},
            ]
        },
    ]
    texts = [tokenizer.render(row.messages) for row in read("a.jsonl", jsonl(*rows)).conversations]
    thought = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n<think>\nr\n</think>\n\nb<|im_end|>\n"
    assert texts == [
        thought,
        thought,
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n\n"
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call><|im_end|>\n'
        "<|im_start|>tool\n8<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n",
    ]


def test_lists_are_no_answers(read: Read) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "Who wrote it?", "answer": ["Ada Holm", "A. Holm", "Holm"]},
        {"question": "The capital?", "answer": ["Oslo"]},
        {"instruction": "List two fruits.", "input": "", "output": ["pear", "plum"]},
        {"question": "a", "answer": "b"},
    ]
    data = read("a.jsonl", jsonl(*rows), skip_bad_rows=True)
    assert [row.line for row in data.conversations] == [4]
    assert [row.reason for row in data.rejected] == [
        '"answer" is a list of 3 texts, not one answer',
        '"answer" is a list of 1 text, not one answer',
        '"output" is a list of 2 texts, not one answer (preference data? this learns one answer)',
    ]
