"""Our rendering and tokens equal those of transformers, from folders in its own layouts."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from qlora_core.data import ChatTokenizer, Conversation
from qlora_core.data.chat.message_marks import as_dicts
from qlora_core.data.chat.template_families import TEMPLATE_FAMILIES

Folder = Callable[..., Path]
ConversationMaker = Callable[..., Conversation]
THOUGHT = "<think>\nI should look.\n</think>\n\nIt costs 8."
ROWS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "Hi"), ("assistant", "Hello")),
    (("system", "Be brief. "), ("user", "你好 😀\n"), ("assistant", " Hello\n"), ("user", "x"), ("assistant", "y<z>&")),
    (("user", "Price?"), ("assistant", THOUGHT), ("user", "Sure?"), ("assistant", THOUGHT)),
)
EXTRAS = (
    "{%- if tools is defined and documents is none -%}no tools{%- endif -%}\n"
    "{% for m in messages %}\n"
    "    {% if m.role == 'system' %}{% continue %}{% endif %}\n"
    "{{ '<|im_start|>' + m.role }}\n"
    "{{ m.content | tojson }}{{ m | tojson(indent=2) }}{{ m.content }}<|im_end|>\n"
    "{% endfor %}\n"
    "{{ strftime_now('%d %b %Y') }}{{ eos_token }}{{ pad_token }}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def transformers_tokenizer(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)


def check_equal(ours: ChatTokenizer, theirs: Any, row: Conversation) -> None:
    messages = as_dicts(row.messages)
    assert ours.render(row.messages) == theirs.apply_chat_template(messages, tokenize=False)
    asked = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert ours.render(row.messages[:-1], add_generation_prompt=True) == asked
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert ours.prompt_ids(row.messages, add_generation_prompt=False) == ids


@pytest.mark.parametrize("family", TEMPLATE_FAMILIES)
def test_every_family_renders_alike(model_folder: Folder, conversation_of: ConversationMaker, family: str) -> None:
    folder = model_folder(family)
    shipped = ChatTokenizer.from_folder(folder, family)
    (folder / "chat_template.jinja").write_text(shipped.template, encoding="utf-8", newline="\n")
    theirs, ours = transformers_tokenizer(folder), ChatTokenizer.from_folder(folder)
    assert (ours.template_name, ours.template) == ("own", shipped.template)
    for messages in ROWS:
        check_equal(ours, theirs, conversation_of(*messages))
        assert ours.encode(conversation_of(*messages)) == shipped.encode(conversation_of(*messages))


def test_a_saved_tokenizer_reads_back(model_folder: Folder, conversation_of: ConversationMaker, tmp_path: Path) -> None:
    template = TEMPLATE_FAMILIES["chatml"].template
    theirs = transformers_tokenizer(model_folder("chatml", template=template))
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").is_file()
    ours = ChatTokenizer.from_folder(tmp_path)
    assert ours.template == template
    assert ours.stop_tokens == ["<|im_end|>", "<|endoftext|>"]
    assert ours.vocab_size == len(theirs)
    for messages in ROWS:
        check_equal(ours, theirs, conversation_of(*messages))


def test_extras_of_the_language_render_alike(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    folder = model_folder("chatml", template=EXTRAS)
    ours, theirs = ChatTokenizer.from_folder(folder), transformers_tokenizer(folder)
    assert ours.template_name == "own"
    for messages in ROWS:
        check_equal(ours, theirs, conversation_of(*messages))


def test_a_generation_mask_agrees_up_to_the_stop_token(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}"
        "{% endif %}{{ '\\n' }}{% endfor %}"
    )
    folder = model_folder("chatml", template=template)
    ours, theirs = ChatTokenizer.from_folder(folder), transformers_tokenizer(folder)
    for messages in ROWS:
        row = conversation_of(*((role, text.strip()) for role, text in messages))
        answer = theirs.apply_chat_template(
            as_dicts(row.messages), return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        example = ours.encode(row)
        assert example.input_ids == answer["input_ids"]
        assert example.supervised == [bool(flag) for flag in answer["assistant_masks"]]


def test_bos_is_not_doubled(
    model_folder: Folder, conversation_of: ConversationMaker, byte_level: Callable[..., Tokenizer]
) -> None:
    markers = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    folder = model_folder("llama3", tokenizer=byte_level(markers, bos="<|begin_of_text|>"))
    ours = ChatTokenizer.from_folder(folder)
    (folder / "chat_template.jinja").write_text(ours.template, encoding="utf-8", newline="\n")
    check_equal(ours, transformers_tokenizer(folder), conversation_of(*ROWS[0]))
    assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["post_processor"]["type"] == "Sequence"
