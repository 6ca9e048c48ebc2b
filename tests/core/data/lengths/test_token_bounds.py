"""A text never has more tokens than the words of other texts say."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.word_tokenizers import KINDS, ODD, PLAIN, QWEN, known, split_by, stages, trained
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from qlora_core.data.lengths.token_bounds import TokenBounds, can_bound

PIECES = st.sampled_from((*PLAIN, *ODD)) | st.text(max_size=6)
TEXTS = st.lists(PIECES, max_size=14).map(" ".join) | st.text(max_size=30) | st.text("ab   \n", max_size=12)


def count(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def bounded_by(tokenizer: Tokenizer, texts: Sequence[str]) -> TokenBounds:
    """Bounds by the words of some texts, one after the other."""
    bounds = TokenBounds(tokenizer)
    for text in texts:
        bounds.count_words([text])
    return bounds


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, max_size=4), other=TEXTS)
@settings(max_examples=100, deadline=None)
def test_no_text_has_more_tokens_than_its_bound(kind: str, texts: list[str], other: str) -> None:
    tokenizer = known(kind)
    bounds = bounded_by(tokenizer, texts)
    assert [bounds.upper_bound(text) for text in texts] == [count(tokenizer, text) for text in texts]
    for text in (other, " ".join([other, *texts]), "".join([*texts, other])):
        assert bounds.upper_bound(text) >= count(tokenizer, text)
        assert bounds.upper_bound(text, 20) >= count(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("blank", ["   ", "\n   ", " \n\n", "\t   ", "\u3000   "])
def test_runs_of_white_space_stay_together(kind: str, blank: str) -> None:
    tokenizer = known(kind)
    for text in (f"a{blank}b c", f"a b{blank}"):
        assert bounded_by(tokenizer, [text]).upper_bound(text) == count(tokenizer, text)


@pytest.mark.parametrize("kind", KINDS)
def test_known_words_bound_a_text_closely(kind: str) -> None:
    tokenizer = known(kind)
    assert can_bound(tokenizer)
    text = "<|im_start|>the answer isn't forty two, I'VE 12345 said: 你好 world<|im_end|>"
    other = text.replace("answer isn't forty", "forty isn't answer")
    assert bounded_by(tokenizer, [text]).upper_bound(other) == count(tokenizer, other) < len(other.encode())


def changed(change: Callable[[Tokenizer], object]) -> Tokenizer:
    return trained(stages("gpt2"), change)


def with_token(**how: bool) -> Tokenizer:
    return changed(lambda tokenizer: tokenizer.add_tokens([AddedToken("<x>", **({"normalized": False} | how))]))


def others() -> Iterator[tuple[str, Tokenizer]]:
    """Tokenizers of which it is not known, or not true, that words have the tokens of the whole."""
    yield "no words", trained([pre_tokenizers.ByteLevel(False, use_regex=False)])
    yield "spaces behind words", trained(split_by(r"\p{L}+ ?|\s+"))
    yield "white space between words", trained(split_by(r" ?\p{L}+|\p{N}"))
    yield "words thrown away", trained(split_by(QWEN, "removed"))
    yield "spaces put in front", trained([pre_tokenizers.ByteLevel(True)])
    yield "cut before", trained([pre_tokenizers.Split(" ", "merged_with_previous"), *stages("gpt2")])
    yield "no bytes", trained([pre_tokenizers.Metaspace()])
    yield "spaces made", changed(lambda tokenizer: setattr(tokenizer, "normalizer", normalizers.NFKC()))
    yield "chance", changed(lambda tokenizer: setattr(tokenizer.model, "dropout", 0.1))
    yield "tokens with spaces", changed(lambda tokenizer: tokenizer.add_special_tokens(["end of turn"]))
    yield "tokens that eat spaces behind", with_token(rstrip=True)
    yield "tokens that eat spaces before", with_token(lstrip=True)
    yield "tokens among words", with_token(single_word=True)
    yield "tokens found later", with_token(normalized=True)


@pytest.mark.parametrize("tokenizer", [pytest.param(tokenizer, id=name) for name, tokenizer in others()])
def test_other_tokenizers_have_no_bounds(tokenizer: Any) -> None:
    assert not can_bound(tokenizer)
