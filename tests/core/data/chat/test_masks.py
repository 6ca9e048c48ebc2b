"""What is supervised, printed, for every template family: the answers and the token that ends them, nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.masks import describe_mask, supervised_texts
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qlora_core.data import ChatTokenizer, Conversation, TokenizedExample
from qlora_core.data.examples import fill_spans

Folder = Callable[..., Path]
ConversationMaker = Callable[..., Conversation]

CHAT = (
    ("system", "Be brief."),
    ("user", "Hi 你好"),
    ("assistant", "Hello! 😀"),
    ("user", "And?"),
    ("assistant", "Not this.", False),
    ("user", "Weather?"),
    ("assistant", "晴天 today."),
)
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nHi 你好<|im_end|>\n<|im_start|>assistant\n[[Hello! 😀<|im_end|>]]\n"
    "<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nNot this.<|im_end|>\n"
    "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n[[晴天 today.<|im_end|>]]\n"
)
MASKS = {
    "chatml": CHATML,
    "qwen": CHATML,
    "qwen3": CHATML.replace("[[晴天", "[[<think>\n\n</think>\n\n晴天"),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi 你好<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[Hello! 😀<|eot_id|>]]"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nNot this.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWeather?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[[晴天 today.<|eot_id|>]]"
    ),
    "gemma": (
        "<bos><start_of_turn>user\nBe brief.\n\nHi 你好<end_of_turn>\n"
        "<start_of_turn>model\n[[Hello! 😀<end_of_turn>]]\n"
        "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\nNot this.<end_of_turn>\n"
        "<start_of_turn>user\nWeather?<end_of_turn>\n<start_of_turn>model\n[[晴天 today.<end_of_turn>]]\n"
    ),
    "phi": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nHi 你好<|end|>\n<|assistant|>\n[[Hello! 😀<|end|>]]\n"
        "<|user|>\nAnd?<|end|>\n<|assistant|>\nNot this.<|end|>\n"
        "<|user|>\nWeather?<|end|>\n<|assistant|>\n[[晴天 today.<|end|>]]\n"
    ),
}


@pytest.mark.parametrize("family", MASKS)
def test_what_each_family_learns(model_folder: Folder, conversation_of: ConversationMaker, family: str) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder(family), family)
    assert describe_mask(tokenizer, tokenizer.encode(conversation_of(*CHAT))) == MASKS[family]


def test_chatml_in_ordinary_tokens_learns_the_eos(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("plain"))
    assert describe_mask(tokenizer, tokenizer.encode(conversation_of(*CHAT))) == CHATML.replace("<|im_end|>", "</s>")
    assert tokenizer.stop_tokens == ["</s>"]


def test_qwen_adds_its_system_message(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("qwen"), "qwen")
    mask = describe_mask(tokenizer, tokenizer.encode(conversation_of(*CHAT[1:3])))
    assert mask.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi")
    assert mask.endswith("[[Hello! 😀<|im_end|>]]\n")


def test_qwen3_learns_thinking_of_the_last_answer_only(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("qwen3"), "qwen3")
    thinking = "<think>\nI should look.\n</think>\n\n"
    messages = (("user", "a"), ("assistant", f"{thinking}One."), ("user", "b"), ("assistant", f"{thinking}Two."))
    assert supervised_texts(tokenizer, tokenizer.encode(conversation_of(*messages))) == [
        "One.<|im_end|>",
        f"{thinking}Two.<|im_end|>",
    ]


def test_tool_turns_are_not_supervised(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    messages = (("user", "a"), ("assistant", "call"), ("tool", "42"), ("tool", "43"), ("assistant", "It is 42."))
    for family in ("chatml", "qwen", "qwen3", "llama3", "phi"):
        tokenizer = ChatTokenizer.from_folder(model_folder(family), family)
        texts = supervised_texts(tokenizer, tokenizer.encode(conversation_of(*messages)))
        stop = tokenizer.stop_tokens[0]
        think = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
        assert texts == [f"call{stop}", f"{think}It is 42.{stop}"]


def test_everything_but_the_first_token_and_marked_messages_when_all_is_supervised(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("gemma"), "gemma")
    messages = (("user", "Hi"), ("assistant", "Skip", False), ("user", "Not me", False), ("assistant", "Yes"))
    every = describe_mask(
        tokenizer, tokenizer.encode(conversation_of(*((role, text) for role, text, *_ in messages), supervise_all=True))
    )
    assert every.startswith("<bos>[[<start_of_turn>user\nHi")
    assert every.count("[[") == 1
    assert every.endswith("\n]]")
    assert describe_mask(tokenizer, tokenizer.encode(conversation_of(*messages, supervise_all=True))) == (
        "<bos>[[<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n]]Skip<end_of_turn>"
        "[[\n<start_of_turn>user\n]]Not me[[<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n]]"
    )


def test_plain_text_is_supervised_whole_with_its_end(
    model_folder: Folder, byte_level: Callable[..., Tokenizer]
) -> None:
    adding = byte_level(("<s>", "</s>"), bos="<s>")
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", tokenizer=adding))
    for text in ("Once upon.", "<s>Once upon.</s>"):
        example = tokenizer.encode(Conversation(line=1, text=text, supervise_all=True))
        assert describe_mask(tokenizer, example) == "<s>[[Once upon.</s>]]"
    without = ChatTokenizer.from_folder(model_folder("chatml"))
    example = without.encode(Conversation(line=1, text="Once upon.", supervise_all=True))
    assert "".join(supervised_texts(without, example)).endswith(" upon.<|endoftext|>")
    assert example.supervised == [False] + [True] * (len(example.input_ids) - 1)


def test_the_stop_token_is_supervised_where_it_swallows_white_space(
    model_folder: Folder, conversation_of: ConversationMaker, byte_level: Callable[..., Tokenizer]
) -> None:
    greedy = byte_level(("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), rstrip=True)
    tokenizer = ChatTokenizer.from_folder(model_folder("phi", tokenizer=greedy))
    example = tokenizer.encode(
        conversation_of(("user", "Hi"), ("assistant", "Hello"), ("user", "x"), ("assistant", "Bye"))
    )
    supervised = [number for number, flag in zip(example.input_ids, example.supervised, strict=True) if flag]
    assert tokenizer.decode(supervised, skip_special_tokens=False) == "Hello<|end|>Bye<|end|>"


def test_a_token_that_begins_in_the_prompt_is_not_supervised(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    """A leading line break may merge with the header's own: that token is not the model's to write."""
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    example = tokenizer.encode(conversation_of(("user", "Hi"), ("assistant", "\n Thank you")))
    assert "\n\n" in [tokenizer.decode([number]) for number in example.input_ids]
    assert supervised_texts(tokenizer, example) == [" Thank you<|im_end|>"]


def test_a_space_token_before_the_answer_is_not_supervised(
    model_folder: Folder, conversation_of: ConversationMaker, byte_level: Callable[..., Tokenizer]
) -> None:
    """Tokenizers that trim their offsets hide where such a token begins."""
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    trimming = byte_level(("<s>", "</s>"), bos="<s>")
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", template=template, tokenizer=trimming))
    example = tokenizer.encode(conversation_of(("user", "a"), ("assistant", "the answer")))
    assert supervised_texts(tokenizer, example) == [" answer</s>"]


@pytest.mark.parametrize("metaspace", [False, True])
def test_characters_cut_into_bytes_and_marked_spaces(
    model_folder: Folder, conversation_of: ConversationMaker, metaspace: bool
) -> None:
    """SentencePiece ways: a space is a sign of its own, a rare character several byte tokens."""
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", tokenizer=_sentencepiece(metaspace)))
    example = tokenizer.encode(
        conversation_of(("user", "hello 你好"), ("assistant", "Hi 😀 there"), ("user", "x"), ("assistant", "再见"))
    )
    assert supervised_texts(tokenizer, example) == ["Hi 😀 there</s>", "再见</s>"]


def _sentencepiece(metaspace: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(["hello there user assistant"] * 3, trainer)
    return tokenizer


# Cutting


def test_cutting_keeps_the_beginning(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml"))
    row = conversation_of(("user", "Hi"), ("assistant", "Hello there"))
    whole = tokenizer.encode(row)
    assert not whole.truncated
    exact = tokenizer.encode(row, len(whole.input_ids))
    assert exact == whole
    cut = tokenizer.encode(row, len(whole.input_ids) - 2)
    assert (cut.input_ids, cut.supervised) == (whole.input_ids[:-2], whole.supervised[:-2])
    assert cut.truncated
    assert cut == whole.truncated_to(len(cut.input_ids))
    assert not any(tokenizer.encode(row, 5).supervised)


def test_encode_all_equals_one_by_one_and_tells_progress(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("qwen3"), "qwen3")
    rows = [conversation_of(("user", f"Question {n}"), ("assistant", f"回答 {n}")) for n in range(1001)]
    seen: list[tuple[int, int]] = []
    example = tokenizer.encode_all(rows, 24, lambda done, total: seen.append((done, total)))
    assert example == [tokenizer.encode(row, 24) for row in rows]
    assert seen == [(1000, 1001), (1001, 1001)]


# The marks themselves


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([(0, 4)], [1, 1, 1, 0, 0]),
        ([(1, 4)], [0, 1, 1, 0, 0]),
        ([(0, 5)], [1, 1, 1, 0, 0]),
        ([(4, 9)], [0, 0, 0, 1, 1]),
        ([(0, 1), (6, 9)], [1, 0, 0, 0, 1]),
        ([(5, 6), (9, 12)], [0, 0, 0, 0, 0]),
    ],
)
def test_only_tokens_wholly_inside_are_marked(spans: list[tuple[int, int]], expected: list[int]) -> None:
    offsets = [(0, 1), (1, 2), (2, 4), (4, 6), (6, 9)]
    supervised = [False] * 5
    fill_spans(supervised, True, spans, offsets, [10, 11, 12, 13, 14], [])
    assert supervised == [bool(flag) for flag in expected]


def test_runs_cover_every_token() -> None:
    flags: list[Any] = [False, False, True, True, False]
    example = TokenizedExample(input_ids=[1, 2, 3, 4, 5], supervised=flags)
    assert example.segments() == [(False, 0, 2), (True, 2, 4), (False, 4, 5)]
    assert example.supervised_tokens == 2
