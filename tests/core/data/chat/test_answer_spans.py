"""Finding answers in templates that rewrite, reorder, mark or leave out what they are given."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.masks import describe_mask, supervised_texts

from qlora_core.data import ChatTokenizer, Conversation
from qlora_profiles.errors import UserError

Folder = Callable[..., Path]
ConversationMaker = Callable[..., Conversation]
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
ASK = (("user", "Hi"), ("assistant", "Hello"))


def chatml(body: str) -> str:
    """ChatML whose content is written by ``body``."""
    turn = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}" + body + "{{ '<|im_end|>\\n' }}{% endfor %}"
    return turn + PROMPT


def supervised(folder: Path, row: Conversation) -> list[str]:
    tokenizer = ChatTokenizer.from_folder(folder)
    assert tokenizer.template_name == "own"
    return supervised_texts(tokenizer, tokenizer.encode(row))


@pytest.mark.parametrize("body", ["{{ m.content }}", "{{ m.content | trim }}", "{{ m.content.rstrip() }}"])
@pytest.mark.parametrize("text", ["Hello", "Hello \n", "a\nb"])
def test_stripped_contents(model_folder: Folder, conversation_of: ConversationMaker, body: str, text: str) -> None:
    row = conversation_of(("user", " x\n"), ("assistant", text), ("user", " "), ("assistant", text))
    kept = text if body == "{{ m.content }}" else text.rstrip()
    assert supervised(model_folder("chatml", template=chatml(body)), row) == [f"{kept}<|im_end|>"] * 2


MARKED = (
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}"
)
MARKED_WITH_STOP = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{%- generation -%}{{ m.content + '<|im_end|>\\n' }}{%- endgeneration -%}"
    "{% else %}{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}" + PROMPT
)


@pytest.mark.parametrize("template", [chatml(MARKED), MARKED_WITH_STOP])
def test_generation_marks_are_used_with_the_stop_token_inside(
    model_folder: Folder, conversation_of: ConversationMaker, template: str
) -> None:
    row = conversation_of(("user", "Hi"), ("assistant", "One"), ("user", "x"), ("assistant", "Two", False))
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=template))
    assert describe_mask(tokenizer, tokenizer.encode(row)) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[[One<|im_end|>]]\n"
        "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\nTwo<|im_end|>\n"
    )
    everything = conversation_of(*ASK, supervise_all=True)
    assert "Hello<|im_end|>\n" in "".join(supervised_texts(tokenizer, tokenizer.encode(everything)))


def test_marks_that_do_not_match_the_answers_are_not_trusted(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    only_last = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and loop.last")
    row = conversation_of(*ASK, *ASK)
    assert supervised(model_folder("chatml", template=chatml(only_last)), row) == ["Hello<|im_end|>"] * 2


def test_marks_inside_a_macro(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    macro = "{% macro say(t) %}{% generation %}{{ t }}{% endgeneration %}{% endmacro %}"
    body = "{% if m.role == 'assistant' %}{{ say(m.content) }}{% else %}{{ m.content }}{% endif %}"
    folder = model_folder("chatml", template=macro + chatml(body))
    assert supervised(folder, conversation_of(*ASK)) == ["Hello<|im_end|>"]


def test_a_prompt_that_opens_the_thinking(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    """What the template writes to ask is not the model's; thinking that the answer brings is."""
    asks_thinking = chatml("{{ m.content }}").replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    folder = model_folder("chatml", template=asks_thinking)
    assert supervised(folder, conversation_of(*ASK)) == ["Hello<|im_end|>"]


def test_a_template_without_a_prompt(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    folder = model_folder("plain", template=template)
    assert supervised(folder, conversation_of(*ASK, *ASK)) == [" Hello </s>"] * 2


def test_an_end_of_text_behind_the_last_stop_is_not_supervised(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    template = chatml("{{ m.content }}").replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    assert supervised(model_folder("chatml", template=template), conversation_of(*ASK)) == ["Hello<|im_end|>"]


def test_contents_written_as_json(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    body = "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content }}{% endif %}"
    row = conversation_of(("user", "x"), ("assistant", "call"), ("tool", '{"price": 8}'), ("assistant", "8 it is"))
    folder = model_folder("chatml", template=chatml(body))
    assert supervised(folder, row) == ["call<|im_end|>", "8 it is<|im_end|>"]


def test_contents_that_look_like_the_template(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    """Text that imitates messages does not move the answer."""
    fake = "x<|im_end|>\n<|im_start|>assistant\nfake<|im_end|>\n"
    folder = model_folder("chatml", template=chatml("{{ m.content }}"))
    assert supervised(folder, conversation_of(("user", fake), ("assistant", "Real"))) == ["Real<|im_end|>"]
    assert supervised(folder, conversation_of(("user", "x"), ("assistant", fake + "end"))) == [f"{fake}end<|im_end|>"]


STRIPS = chatml("{{ m.content.split('</think>')[-1] | trim }}")


def test_thinking_that_is_dropped_from_the_last_answer_is_refused(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    thought = "<think>\nSo.\n</think>\n\nHello"
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=STRIPS))
    with pytest.raises(
        UserError, match=r"drops a part of the assistant message \(its thinking\?\)  -> --chat-template"
    ):
        tokenizer.encode(conversation_of(("user", "Hi"), ("assistant", thought)))
    earlier = conversation_of(("user", "Hi"), ("assistant", thought), ("user", "x"), ("assistant", "Bye"))
    assert supervised_texts(tokenizer, tokenizer.encode(earlier)) == ["Hello<|im_end|>", "Bye<|im_end|>"]


@pytest.mark.parametrize(("template", "ending"), [(STRIPS, ""), (STRIPS.replace(" | trim", ""), " \n")])
def test_rewritten_contents_with_white_space_behind(
    model_folder: Folder, conversation_of: ConversationMaker, template: str, ending: str
) -> None:
    thought = "<think>So.</think>Hello \n"
    row = conversation_of(("user", "Hi \n"), ("assistant", thought), ("user", "x"), ("assistant", "Bye"))
    assert supervised(model_folder("chatml", template=template), row) == [f"Hello{ending}<|im_end|>", "Bye<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (chatml("{% if m.role != 'system' %}{{ m.content }}{% endif %}"), "leaves out message 1 (system)"),
        (chatml("{{ m.content.replace('Hello', 'Goodbye') }}"), "drops a part of the assistant message"),
        (chatml("{{ m.content + m.content }}"), "does not show where answers begin and end"),
        (chatml("{{ m.content | length if '?' in m.content else m.content }}"), "drops a part of the user message"),
    ],
)
def test_templates_that_damage_text_are_refused(
    model_folder: Folder, conversation_of: ConversationMaker, template: str, reason: str
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=template))
    row = conversation_of(("system", "S"), ("user", "Hi?"), ("assistant", "Hello"))
    with pytest.raises(UserError) as caught:
        tokenizer.encode(row)
    assert reason in str(caught.value)
    assert str(caught.value).endswith("-> --chat-template chatml")
