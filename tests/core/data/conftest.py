"""Small real tokenizers, saved the way model folders hold them, and data files."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from qlora_core.data import Conversation, DataSet, Message, ReadOptions, read_data

FolderMaker = Callable[..., Path]
SENTENCES = (
    "Hello there, how can I help you today? The answer is forty two.",
    "assistant\nuser\nsystem\nmodel\nWhat is the capital of France? Paris.\n\nThank you very much.",
    "Paragraphs.\n\n Indented text.\n\n Indented again.",
    "你好，请问今天天气怎么样？今天晴天。谢谢你的帮助，再见。",
    '{"name": "soup", "price": 8} <think>\nI should look this up.\n</think>\n\nSoup costs 8.',
)
# as today's models cut: line breaks stay together, whatever follows them
WORDS = r"\s*\n+| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MARKERS = {
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
    "phi": ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    "plain": ("<s>", "</s>"),
}
MARKERS["qwen"] = MARKERS["qwen3"] = MARKERS["chatml"]
ENDS = {
    "chatml": {"eos_token": "<|endoftext|>"},
    "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>"},
    "phi": {"eos_token": "<|endoftext|>"},
    "plain": {"bos_token": "<s>", "eos_token": "</s>"},
}
ENDS["qwen"] = ENDS["qwen3"] = ENDS["chatml"]


def byte_level(markers: Sequence[str], *, rstrip: bool = False, bos: str | None = None) -> Tokenizer:
    """A byte-level BPE that merges common words, with ``markers`` as special tokens.

    With ``bos`` it adds that token by itself, and trims offsets, as Llama's does.
    """
    tokenizer = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, rstrip=rstrip, normalized=False) for text in markers])
    trimming = processors.ByteLevel(trim_offsets=True)
    tokenizer.post_processor = trimming
    if bos:
        number = tokenizer.token_to_id(bos)
        adding = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
        tokenizer.post_processor = processors.Sequence([trimming, adding])
    return tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> FolderMaker:
    """Makes a model folder: ``model_folder("gemma", template=..., files={"x.json": {...}})``."""

    def make(
        family: str,
        *,
        template: str | None = None,
        config: dict[str, Any] | None = None,
        files: dict[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
    ) -> Path:
        folder = tmp_path_factory.mktemp(family)
        (tokenizer or byte_level(MARKERS[family])).save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **ENDS[family]} if config is None else config
        if template is not None:
            settings = settings | {"chat_template": template}
        for name, content in {"tokenizer_config.json": settings, **(files or {})}.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text, encoding="utf-8", newline="\n")
        return folder

    return make


@pytest.fixture(scope="session")
def conversation_of() -> Callable[..., Conversation]:
    """Makes a conversation of (role, content[, supervised]); answers are supervised unless said otherwise."""

    def make(*messages: tuple[Any, ...], supervise_all: bool = False) -> Conversation:
        made = (
            Message(role=role, content=content, supervised=said[0] if said else supervise_all or role == "assistant")
            for role, content, *said in messages
        )
        return Conversation(line=1, messages=tuple(made), supervise_all=supervise_all)

    return make


@pytest.fixture(scope="session", name="byte_level")
def byte_level_fixture() -> Callable[..., Tokenizer]:
    """The tokenizer maker, for tests that want a special one."""
    return byte_level


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., DataSet]:
    """Writes a data file and reads it: ``read("my.jsonl", text_or_bytes, skip_bad_rows=True)``."""

    def write_and_read(name: str, content: str | bytes, **options: Any) -> DataSet:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_data(ReadOptions(path=str(path), **options))

    return write_and_read
