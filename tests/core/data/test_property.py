"""For any conversation: what is supervised is the answers with their stop token, and nothing else holds them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.masks import supervised_texts
from tokenizers import Tokenizer, normalizers

from qlora_core.data import ChatTokenizer, Conversation, Message, split

Folder = Callable[..., Path]
LETTERS = "abcdefgh ABC.,!?\n\t'\"{}[]0123456789你好天气谢再见éñ😀👍\u0301\u2028\ufe0f<>|\\/"


def words(of: str) -> st.SearchStrategy[str]:
    """Text that begins with a mark of its own, so that it can be found again, and ends in no white space."""
    return st.text(LETTERS, max_size=40).map(lambda text: f"{of}{text}".rstrip())


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    messages = [Message(role="system", content=draw(words("S")))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message(role="user", content=draw(words("Q"))))
        messages.append(Message(role="assistant", content=draw(words("ANSWER:")), supervised=draw(st.booleans())))
    return Conversation(line=1, messages=tuple(messages))


@pytest.fixture(scope="session")
def tokenizer_of(model_folder: Folder, byte_level: Callable[..., Tokenizer]) -> Callable[[str], ChatTokenizer]:
    @cache
    def load(family: str) -> ChatTokenizer:
        return ChatTokenizer.from_folder(model_folder(family), family if family != "plain" else None)

    return load


@pytest.mark.parametrize("family", ["chatml", "qwen", "llama3", "gemma", "phi", "plain"])
@given(row=conversations())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_supervised_text_is_the_answers(
    tokenizer_of: Callable[[str], ChatTokenizer], family: str, row: Conversation
) -> None:
    tokenizer = tokenizer_of(family)
    example = tokenizer.encode(row)
    stop = tokenizer.stop_tokens[0]
    expected = [message.content + stop for message in row.messages if message.supervised]
    assert supervised_texts(tokenizer, example) == expected
    pairs = zip(example.input_ids, example.supervised, strict=True)
    rest = tokenizer.decode([number for number, flag in pairs if not flag], skip_special_tokens=False)
    unsupervised = sum(message.role == "assistant" and not message.supervised for message in row.messages)
    assert rest.count("ANSWER:") == unsupervised
    assert tokenizer.decode(example.input_ids, skip_special_tokens=False) == tokenizer.render(row.messages)


@given(row=conversations())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_normalizer_does_not_move_the_mask(
    model_folder: Folder, byte_level: Callable[..., Tokenizer], composing: ChatTokenizer, row: Conversation
) -> None:
    """A tokenizer that composes characters tokenises other text than was rendered; offsets still tell."""
    from unicodedata import normalize

    stop = composing.stop_tokens[0]
    expected = [normalize("NFC", message.content + stop) for message in row.messages if message.supervised]
    assert supervised_texts(composing, composing.encode(row)) == expected


@pytest.fixture(scope="session")
def composing(model_folder: Folder, byte_level: Callable[..., Tokenizer]) -> ChatTokenizer:
    tokenizer = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.normalizer = normalizers.NFC()
    return ChatTokenizer.from_folder(model_folder("chatml", tokenizer=tokenizer))


@given(rows=st.integers(2, 400), size=st.floats(0, 0.9), seed=st.integers(0, 99))
def test_a_split_keeps_every_row_once_and_in_order(rows: int, size: float, seed: int) -> None:
    train, held = split(range(rows), size, seed)
    assert sorted([*train, *held]) == list(range(rows))
    assert (train, held) == (sorted(train), sorted(held))
    assert (train, held) == split(range(rows), size, seed)
