"""Small byte-level tokenizers that cut words as today's models do, and words that such cuts could go wrong at."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_end|>>")
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERNS = {
    "qwen": QWEN,
    "llama": QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1),
    "greedy": QWEN.replace(r"\s+(?!\S)|", "", 1),
    "o200k": rf"{_UPPER}*{_LOWER}+{_ENDING}|{_UPPER}+{_LOWER}*{_ENDING}|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
KINDS = ("gpt2", "digits", *PATTERNS)
CORPUS = (
    "The answer isn't here, it's there: forty two, 1234567 and 89. I'VE said so!\n\n- one\n- two\n\treturn x_1 == y;",
    "你好，请问今天天气怎么样？今天晴天。谢谢你的帮助，再见。 Hello 你好 world",
    "naïve café élan   spaces    and\u3000wide ones 😀👍 the the the answer answer",
    *(
        f"a{blank}b"
        for blank in ("  ", "   ", "\n  ", " \n", " \n\n", "\t  ", "\u3000  ", "\u2028  ")
        for _ in range(20)
    ),
)
PLAIN = (
    *("the", "answer", "The", "isn't", "I'VE", "forty", "12345", "x_1", "==", "¡olé!", "你好，请问", "今天晴天。"),
    *("😀👍🏽", "aaaaaaaaaaaaaaaaaaaaaaaa", "<|im_end|>", "<|im_end|>>", "<|im_start|>user", "<|im", "it's"),
)
ODD = (
    *("\u0301\u0915\u093c", "\u0958", "\u1fef", "e\u0301", "\u0344", "'s", "/\n", "\n", "\n\n", "\t", " ", ""),
    *("\u3000", "\x1c", "\x85", "\u2028", "a\u3000", "a\t", "a\n", "\nb"),
)


def split_by(pattern: str, behaviour: str = "isolated", invert: bool = False) -> list[Any]:
    """Words by a pattern, as bytes."""
    words = pre_tokenizers.Split(Regex(pattern), behaviour, invert)
    return [words, pre_tokenizers.ByteLevel(False, use_regex=False)]


def stages(kind: str) -> list[Any]:
    """The pre-tokenizers of a kind of models."""
    if kind in PATTERNS:
        return split_by(PATTERNS[kind], *(("removed", True) if kind == "o200k" else ()))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if kind == "digits" else []
    return [*digits, pre_tokenizers.ByteLevel(False)]


def trained(of: Sequence[Any], change: Callable[[Tokenizer], object] = lambda _: None) -> Tokenizer:
    """A byte-level BPE with these pre-tokenizers that merges as much as they let it; ``change`` is done to it last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(of)) if len(of) > 1 else of[0]
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in MARKERS])
    change(tokenizer)
    return tokenizer


@cache
def known(kind: str) -> Tokenizer:
    """A tokenizer of one of the ``KINDS``; Qwen's composes characters."""
    composing = normalizers.NFC() if kind == "qwen" else None
    return trained(stages(kind), lambda tokenizer: setattr(tokenizer, "normalizer", composing))
