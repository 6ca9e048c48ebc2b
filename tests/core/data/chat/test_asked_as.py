"""A model is asked as it was trained: by its template, by what training wrote instead, or by a text around a prompt."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.masks import supervised_texts
from tokenizers import Tokenizer

from qlora_core.data import ChatTokenizer, Conversation, Message
from qlora_profiles.errors import UserError

Folder = Callable[..., Path]
ConversationMaker = Callable[..., Conversation]
HI = [Message(role="user", content="Hi")]
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') + '\\n' + m.content | trim }}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
THINKS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.reasoning_content and loop.last %}"
    "{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def asked(tokenizer: ChatTokenizer, texts: Sequence[str]) -> str:
    """How the tokenizer asks after it encoded text rows."""
    rows = [Conversation(line=number, text=text, supervise_all=True) for number, text in enumerate(texts, 1)]
    tokenizer.encode_all(rows)
    tokenizer.ask_as_trained()
    return tokenizer.decode(tokenizer.prompt_ids(HI), skip_special_tokens=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Below is an instruction.\n\n### Instruction:\n", "\n\n### Response:\n"),
        ("### Human: ", "\n### Assistant: "),
        ("USER: ", " ASSISTANT: "),
        ("Question: ", "\nAnswer: "),
        ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        ("[INST] ", " [/INST] "),
        ("<start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
    ],
)
def test_text_rows_that_hold_a_template_are_told_and_asked_by_it(model_folder: Folder, before: str, after: str) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    texts = [f"{before}Name {number}.{after}It is {number}." for number in range(5)]
    assert asked(tokenizer, texts) == f"{before}Hi{after}"
    (warning,) = tokenizer.warnings()
    assert warning.startswith("5 of 5 text rows hold a rendered template (")
    assert tokenizer.learned() == "not applied: text rows learned whole, ended by <|endoftext|>"


def test_systems_of_each_row_are_not_asked_with(model_folder: Folder) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("plain"))
    texts = [f"Text {n}: {'x' * n}\n### Instruction:\nSum up.\n### Response:\nIt is {n}." for n in range(10)]
    assert asked(tokenizer, texts) == "### Instruction:\nHi\n### Response:\n"


def test_plain_texts_are_continued(model_folder: Folder, byte_level: Callable[..., Tokenizer]) -> None:
    adding = byte_level(("<s>", "</s>"), bos="<s>")
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", tokenizer=adding))
    assert asked(tokenizer, ["Once upon a time.", "A fox. Answer me!"]) == "<s>Hi"
    assert (tokenizer.asked_as, tokenizer.warnings()) == ("text", [])


def test_a_model_of_texts_ends_where_its_texts_did(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    assert tokenizer.stop_tokens == ["<|im_end|>", "<|endoftext|>"]
    texts = [Conversation(line=n, text=f"It rained {n} days.", supervise_all=True) for n in (1, 2)]
    chat = conversation_of(("user", "Hi"), ("assistant", "Hello"))
    tokenizer.encode_all([*texts, chat])
    tokenizer.ask_as_trained()
    assert tokenizer.stop_tokens == ["<|endoftext|>", "<|im_end|>"]
    assert [tokenizer.token_of(number) for number in tokenizer.stop_ids] == tokenizer.stop_tokens
    assert tokenizer.learned().endswith("; 2 text rows learned whole, ended by <|endoftext|>")
    of_chats = ChatTokenizer.from_folder(model_folder("chatml"))
    of_chats.encode_all([texts[0], chat, chat])
    of_chats.ask_as_trained()
    assert of_chats.stop_tokens == ["<|im_end|>", "<|endoftext|>"]
    assert of_chats.learned().endswith("; 1 text row learned whole, ended by <|endoftext|>")


def test_a_rendered_end_is_not_doubled(model_folder: Folder) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", config={"eos_token": "<|im_end|>"}))
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    example = tokenizer.encode(Conversation(line=1, text=text, supervise_all=True))
    assert tokenizer.decode(example.input_ids, skip_special_tokens=False) == text.rstrip()


def test_answers_without_thinking_are_asked_for_without_opening_it(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=THINKS))
    tokenizer.encode_all([conversation_of(("user", "Hi"), ("assistant", "Hello"))] * 2)
    tokenizer.ask_as_trained()
    assert tokenizer.asked_as == "chat:<|im_start|>assistant\n"
    prompt = tokenizer.decode(tokenizer.prompt_ids(HI), skip_special_tokens=False)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_role_that_nothing_asks_for_asks_itself(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    """The header of an answer is not learned though the template cannot write it alone."""
    source = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\\n' }}{% endfor %}"
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", template=source))
    (example,) = tokenizer.encode_all([conversation_of(("user", "Hi"), ("assistant", "Hello"))])
    assert supervised_texts(tokenizer, example) == [" Hello</s>"]
    tokenizer.ask_as_trained()
    assert tokenizer.prompt_ids(HI) == example.input_ids[: example.supervised.index(True)]


def test_reasoning_of_earlier_answers_is_left_out_and_told(model_folder: Folder) -> None:
    answers = [
        Message(role="assistant", content=text, reasoning=f"So {text}.", supervised=True) for text in ("One", "Two")
    ]
    row = Conversation(line=1, messages=(*HI, answers[0], *HI, answers[1]))
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=THINKS))
    (example,) = tokenizer.encode_all([row])
    assert supervised_texts(tokenizer, example) == ["One<|im_end|>", "So Two.\n</think>\n\nTwo<|im_end|>"]
    assert tokenizer.warnings() == [
        "1 earlier answers are learned without their reasoning: the template leaves it out where a conversation goes on"
    ]
    plain = ChatTokenizer.from_folder(model_folder("chatml"))
    with pytest.raises(UserError, match=r"leaves out the reasoning of message 2 .*-> --ignore reasoning_content, or"):
        plain.encode(row)


def test_a_refused_system_message_names_the_template_that_takes_it(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    folder = model_folder("gemma", template=NO_SYSTEM)
    row = conversation_of(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    with pytest.raises(UserError, match=r"System role not supported  -> --chat-template gemma$"):
        ChatTokenizer.from_folder(folder).encode(row)
    tokenizer = ChatTokenizer.from_folder(folder, "gemma")
    example = tokenizer.encode(row)
    assert tokenizer.decode(example.input_ids, skip_special_tokens=False) == (
        "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    )
    assert supervised_texts(tokenizer, example) == ["Hello<end_of_turn>"]
