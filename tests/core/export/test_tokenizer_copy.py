"""The base's tokenizer files beside what was trained: as they are, and read by plain transformers as in training."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models import CHATML
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qlora_core.data import ChatTokenizer, Message
from qlora_core.data.chat.tokenizer_files import read_tokenizer
from qlora_core.export.tokenizer_copy import Trained, copy_tokenizer

SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<unk>"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
WORDS = ["the quick brown fox jumps over 1234567 lazy dogs, don't they?", "naïve café 你好 user assistant\n\n  hi"] * 20
TEXTS = (
    "Hello  world 1234567",
    " the fox\n\n  I'm 42",
    "<|im_start|>user\n你好 café cafe\u0301<|im_end|>\n x</s> y",
    "ＦＵＬＬ THE",
)
ROWS = (Message(role="user", content="is it 12?"), Message(role="assistant", content="Yes, I'm 12"))
MESSAGES = [{"role": row.role, "content": row.content} for row in ROWS]
TWO_ENDS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.role == 'assistant' %}<|im_end|>{% else %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def cut_by(pattern: str) -> Any:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_only])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])
PRE_TOKENIZERS = {
    "bytes": BYTES,
    "space in front": pre_tokenizers.ByteLevel(add_prefix_space=True),
    "digits": DIGITS,
    "regex": cut_by(r"\p{N}{1,3}| ?\p{L}+|\s+"),
    "never": pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    "always": pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
}


def tokenizer_of(kind: str, normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = PRE_TOKENIZERS[kind]
    spaces = kind in ("never", "always")
    made.decoder = decoders.Metaspace() if spaces else decoders.ByteLevel()
    alphabet = [] if spaces else pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(WORDS, trainer)
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def base_of(folder: Path, tokenizer: Tokenizer, config: dict[str, Any], template: str | None = CHATML) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8", newline="\n")
    return folder


def copied(base: Path) -> tuple[Path, ChatTokenizer]:
    """The tokenizer beside an adapter, and what training read."""
    chat = ChatTokenizer.from_folder(base)
    target = base.parent / "adapter"
    assert copy_tokenizer(base, target, Trained(chat.template, chat.stop_ids[0])) is None
    return target, chat


def plain(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def settings(folder: Path, name: str = "tokenizer_config.json") -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return loaded


CASES: list[tuple[str, str | None, dict[str, Any]]] = [
    ("bytes", "LlamaTokenizerFast", {}),
    ("bytes", "LlamaTokenizer", {"legacy": False, "add_bos_token": True}),
    ("bytes", "GPT2Tokenizer", {"add_prefix_space": True}),
    ("space in front", "GPT2TokenizerFast", {}),
    ("digits", "Qwen2Tokenizer", {}),
    ("regex", "CodeGenTokenizer", {}),
    ("never", "LlamaTokenizer", {"legacy": True}),
    ("always", "GemmaTokenizer", {}),
    ("always", "T5TokenizerFast", {}),
    ("digits", "NoSuchTokenizer", {}),
    ("bytes", "TokenizersBackend", {"extra_special_tokens": ["<|im_start|>"]}),
    ("regex", None, {}),
]


@pytest.mark.parametrize(("kind", "named", "more"), CASES)
def test_plain_transformers_gives_the_tokens_that_were_trained_on(
    tmp_path: Path, kind: str, named: str | None, more: dict[str, Any]
) -> None:
    raw = tokenizer_of(kind)
    config = NAMED | more | ({"tokenizer_class": named} if named else {})
    base = base_of(tmp_path / "base", raw, config)
    folder, chat = copied(base)
    theirs = plain(folder)
    for text in TEXTS:
        ids = raw.encode(text, add_special_tokens=False).ids
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids
        assert read_tokenizer(folder).tokenizer.encode(text, add_special_tokens=False).ids == ids
    assert theirs.apply_chat_template(MESSAGES, return_dict=False) == chat.prompt_ids(ROWS, add_generation_prompt=False)
    assert (folder / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert not isinstance(settings(folder).get("extra_special_tokens"), list)  # transformers 4 fails on a list
    if kind == "space in front":
        assert settings(folder)["add_prefix_space"] is True  # which transformers 4 takes from here


@pytest.mark.parametrize("kind", ["digits", "always"])
def test_an_architecture_whose_class_transformers_forces_reads_its_own_tokens_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", list(sys.path))
    raw = tokenizer_of(kind)
    base = base_of(tmp_path / "base", raw, NAMED | {"tokenizer_class": "LlamaTokenizerFast"})
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "config.json").write_text('{"model_type": "qwen2"}', encoding="utf-8")
    folder, _ = copied(base)
    wanted = [raw.encode(text, add_special_tokens=False).ids for text in TEXTS]
    for trusted in (False, True):
        theirs = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trusted)
        assert [theirs(text, add_special_tokens=False)["input_ids"] for text in TEXTS] == wanted
        theirs.save_pretrained(str(tmp_path / f"again-{trusted}"))
    assert PreTrainedTokenizerFast._auto_class is None  # transformers' own class is not marked
    assert not list(base.glob("*.py"))


def test_files_that_need_no_word_changed_are_equal_to_the_byte(tmp_path: Path) -> None:
    config = NAMED | {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    base = base_of(tmp_path / "base", tokenizer_of("digits", normalizers.NFC()), config)
    (base / "special_tokens_map.json").write_bytes(b'{"eos_token":  "<|im_end|>"}')
    (base / "merges.txt").write_bytes(b"#version\r\n")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_bytes(b"x\r\n")
    (base / "model.safetensors").write_bytes(b"no tokenizer")
    folder, _ = copied(base)
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 6
    assert all((folder / name).read_bytes() == (base / name).read_bytes() for name in files)


def test_the_trained_stop_token_is_the_end_in_every_file_and_the_text_stays(tmp_path: Path) -> None:
    stored = [{"name": "default", "template": TWO_ENDS}, {"name": "tool_use", "template": "tools"}]
    config = NAMED | {"tokenizer_class": "GPT2Tokenizer", "chat_template": stored}
    base = base_of(tmp_path / "base", tokenizer_of("bytes"), config, template=None)
    end = {"content": "</s>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    (base / "special_tokens_map.json").write_text(json.dumps({"eos_token": end, "pad_token": "<unk>"}), "utf-8")
    folder, chat = copied(base)
    assert chat.stop_tokens[0] == "<|im_end|>"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert settings(folder, name)["eos_token"] == "<|im_end|>"
    assert settings(folder, "special_tokens_map.json")["pad_token"] == "<unk>"
    text = chat.render(ROWS)
    assert "</s>" in text
    assert plain(folder).apply_chat_template(MESSAGES, tokenize=False) == text
    again = ChatTokenizer.from_folder(folder)
    assert again.render(ROWS) == text
    named = {entry["name"]: entry["template"] for entry in settings(folder)["chat_template"]}
    assert named == {"default": again.template, "tool_use": "tools"}


def test_another_template_than_the_bases_goes_where_old_and_new_look(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tokenizer_of("bytes"), NAMED | {"chat_template": "old"}, template="older")
    target = tmp_path / "adapter"
    assert copy_tokenizer(base, target, Trained(CHATML, SPECIAL.index("<|im_end|>"))) is None
    assert (target / "chat_template.jinja").read_text(encoding="utf-8") == CHATML
    assert settings(target)["chat_template"] == CHATML
    assert plain(target).chat_template == CHATML


def test_tokens_that_only_the_model_names_by_number_are_written_down(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base", tokenizer_of("bytes"), {}, template=TWO_ENDS)
    (base / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}), encoding="utf-8")
    folder, chat = copied(base)
    theirs = plain(folder)
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "<|im_end|>")
    text = chat.render(ROWS)
    assert text.startswith("<s>")
    assert theirs.apply_chat_template(MESSAGES, tokenize=False) == text
    assert ChatTokenizer.from_folder(folder).stop_ids[0] == chat.stop_ids[0]


Beside = Callable[[Tokenizer], dict[str, Any]]
FLAGS = {"lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
BESIDE: dict[str, tuple[str, Beside]] = {
    "text": ("tokenizer_config.json", lambda t: {"eos_token": "</s>"}),
    "object": ("tokenizer_config.json", lambda t: {"eos_token": FLAGS | {"content": "</s>", "__type": "AddedToken"}}),
    "more": ("tokenizer_config.json", lambda t: {"additional_special_tokens": ["</s>"]}),
    "extra": ("tokenizer_config.json", lambda t: {"extra_special_tokens": {"end": "</s>"}}),
    "described": (
        "tokenizer_config.json",
        lambda t: {"added_tokens_decoder": {str(t.token_to_id("<s>")): FLAGS | {"content": "<s>", "special": True}}},
    ),
    "old map": ("special_tokens_map.json", lambda t: {"eos_token": "</s>"}),
    "old list": ("added_tokens.json", lambda t: {"</s>": t.token_to_id("</s>")}),
}


@pytest.mark.parametrize("case", BESIDE)
def test_tokens_named_beside_tokenizer_json_are_whole_as_in_transformers(tmp_path: Path, case: str) -> None:
    stored = json.loads(tokenizer_of("bytes").to_str())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] != "</s>"]
    tokenizer = Tokenizer.from_str(json.dumps(stored))
    base = base_of(tmp_path / "base", tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast"})
    file, beside = BESIDE[case]
    before = settings(base, file) if (base / file).is_file() else {}
    (base / file).write_text(json.dumps(before | beside(tokenizer)), encoding="utf-8")
    theirs, ours = plain(base), read_tokenizer(base).tokenizer
    for text in ("hi </s> you <s> a", "x</s>y"):
        assert ours.encode(text, add_special_tokens=False).ids == theirs(text, add_special_tokens=False)["input_ids"]


def test_a_number_that_names_an_ordinary_word_names_no_end(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("bytes")
    base = base_of(tmp_path / "base", tokenizer, {})
    for number in (tokenizer.token_to_id("!"), -1, 10**12):
        (base / "config.json").write_text(json.dumps({"eos_token_id": number}), encoding="utf-8")
        assert read_tokenizer(base).end_tokens == ()
