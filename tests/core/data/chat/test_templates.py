"""Which template and which stop token a model folder gives, in old and new layouts, and what is refused."""

import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from support.masks import describe_mask, supervised_texts
from tokenizers import Tokenizer

from qlora_core.data import BadRow, BadRows, ChatTokenizer, Conversation, Message
from qlora_core.data.chat.template_families import TEMPLATE_FAMILIES
from qlora_profiles.errors import UserError

Folder = Callable[..., Path]
ConversationMaker = Callable[..., Conversation]
ASK = (("user", "Hi"), ("assistant", "Hello"))
MINE = "{% for m in messages %}{{ '#' + m.role + '#' + m.content + eos_token }}{% endfor %}"
MINE += "{% if add_generation_prompt %}{{ '#assistant#' }}{% endif %}"


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("chatml", "chatml", "the tokenizer has <|im_start|> <|im_end|>"),
        ("llama3", "llama3", "the tokenizer has <|start_header_id|>"),
        ("gemma", "gemma", "the tokenizer has <start_of_turn>"),
        ("phi", "phi", "the tokenizer has <|user|>"),
        ("plain", "chatml-eos", "it has no turn markers"),
    ],
)
def test_a_template_is_picked_by_the_tokens(model_folder: Folder, family: str, name: str, reason: str) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder(family))
    assert tokenizer.template_name == name
    assert tokenizer.template_source.startswith("the tokenizer has no template; ")
    assert reason in tokenizer.template_source


@pytest.mark.parametrize(
    ("settings", "files", "found"),
    [
        ({"chat_template": MINE}, {}, "tokenizer_config.json"),
        ({"chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": MINE}]}, {}, "config"),
        ({}, {"chat_template.jinja": MINE}, "chat_template.jinja"),
        ({"chat_template": "other"}, {"chat_template.jinja": MINE}, "chat_template.jinja"),
    ],
)
def test_the_models_own_template(
    model_folder: Folder,
    conversation_of: ConversationMaker,
    settings: dict[str, Any],
    files: dict[str, str],
    found: str,
) -> None:
    folder = model_folder("plain", config={"eos_token": "</s>", **settings}, files=files)
    tokenizer = ChatTokenizer.from_folder(folder)
    assert (tokenizer.template, tokenizer.template_name) == (MINE, "own")
    assert found in tokenizer.template_source
    assert describe_mask(tokenizer, tokenizer.encode(conversation_of(*ASK))) == "#user#Hi</s>#assistant#[[Hello</s>]]"


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"eos_token": "</s>"}, {}),
        ({"eos_token": {"__type": "AddedToken", "content": "</s>"}}, {}),
        ({"eos_token": "<s>"}, {"special_tokens_map.json": {"eos_token": {"content": "</s>"}}}),
        ({"eos_token": "</s>", "added_tokens_decoder": {}}, {"special_tokens_map.json": {"eos_token": "<s>"}}),
        ({}, {"generation_config.json": {"eos_token_id": "EOS"}}),
        ({}, {"config.json": {"eos_token_id": ["EOS"]}}),
        ({}, {"config.json": {"text_config": {"eos_token_id": "EOS"}}}),
    ],
)
def test_where_the_end_token_is_written(
    model_folder: Folder, byte_level: Callable[..., Tokenizer], config: dict[str, Any], files: dict[str, Any]
) -> None:
    plain = byte_level(("<s>", "</s>"))
    numbered = {name: _numbered(content, plain.token_to_id("</s>")) for name, content in files.items()}
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", config=config, files=numbered))
    assert tokenizer.stop_tokens == ["</s>"]
    assert tokenizer.stop_ids == [plain.token_to_id("</s>")]
    assert tokenizer.vocab_size == plain.get_vocab_size()


def _numbered(content: Any, number: int | None) -> Any:
    if isinstance(content, dict):
        return {key: _numbered(value, number) for key, value in content.items()}
    if isinstance(content, list):
        return [_numbered(value, number) for value in content]
    return number if content == "EOS" else content


def test_the_trained_end_of_turn_comes_first(model_folder: Folder, byte_level: Callable[..., Tokenizer]) -> None:
    three = byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|stop|>"))
    extra = {"generation_config.json": {"eos_token_id": [three.token_to_id("<|stop|>")]}}
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", tokenizer=three, files=extra))
    assert tokenizer.stop_tokens == ["<|im_end|>", "<|endoftext|>", "<|stop|>"]
    assert tokenizer.decode(tokenizer.stop_ids, skip_special_tokens=False) == "".join(tokenizer.stop_tokens)


def test_a_template_that_never_stops_is_kept_and_ended(
    model_folder: Folder, conversation_of: ConversationMaker
) -> None:
    """The eos token is put behind a row's last answer: nothing else would teach it to stop."""
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    endless += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    tokenizer = ChatTokenizer.from_folder(model_folder("chatml", template=endless))
    row = conversation_of(*ASK, *ASK)
    assert tokenizer.template_name == "own"
    assert supervised_texts(tokenizer, tokenizer.encode(row)) == [" Hello", " Hello\n<|endoftext|>"]
    assert tokenizer.learned() == (
        "the model's own; learned: the answers and <|endoftext|>, put behind the last answer of a row"
    )


def test_the_next_roles_token_ends_an_answer_where_the_model_stops_on_it(
    model_folder: Folder, conversation_of: ConversationMaker, byte_level: Callable[..., Tokenizer]
) -> None:
    source = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    source += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    three = byte_level(("<|endoftext|>", "<|user|>", "<|assistant|>", "<|tool|>"))
    stops = {"eos_token_id": [three.token_to_id(token) for token in ("<|endoftext|>", "<|user|>", "<|tool|>")]}
    files = {"generation_config.json": stops}
    tokenizer = ChatTokenizer.from_folder(model_folder("phi", template=source, tokenizer=three, files=files))
    assert tokenizer.stop_tokens[0] == "<|user|>"
    assert describe_mask(tokenizer, tokenizer.encode(conversation_of(*ASK, *ASK))) == (
        "<|user|>Hi<|assistant|>[[Hello<|user|>]]Hi<|assistant|>[[Hello<|user|>]]"
    )


def test_an_own_template_that_cannot_be_used_is_refused_not_replaced(model_folder: Folder) -> None:
    folder = model_folder("chatml", template="{% for m in messages %}{% if m.role == 'user' %}x{% endif %}{% endfor %}")
    with pytest.raises(UserError, match=r"leaves out answers.*-> --chat-template chatml"):
        ChatTokenizer.from_folder(folder)
    assert ChatTokenizer.from_folder(folder, "chatml").template_name == "chatml"


def test_bos_is_written_where_the_tokenizer_adds_it_and_only_once(
    model_folder: Folder, byte_level: Callable[..., Tokenizer]
) -> None:
    adding = byte_level(("<s>", "</s>"), bos="<s>")
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", tokenizer=adding))
    ids = tokenizer.prompt_ids([Message(role="user", content="Hi")])
    assert [place for place, number in enumerate(ids) if number == adding.token_to_id("<s>")] == [0]
    assert not ChatTokenizer.from_folder(model_folder("plain")).template.startswith("{{- bos_token")


def test_padding_and_cutting_in_the_tokenizer_file_are_ignored(
    model_folder: Folder, conversation_of: ConversationMaker, byte_level: Callable[..., Tokenizer]
) -> None:
    limited = byte_level(("<s>", "</s>"))
    limited.enable_truncation(4)
    limited.enable_padding(length=64)
    tokenizer = ChatTokenizer.from_folder(model_folder("plain", tokenizer=limited))
    free = ChatTokenizer.from_folder(model_folder("plain"))
    assert tokenizer.encode(conversation_of(*ASK)) == free.encode(conversation_of(*ASK))


# Asked for by a person


@pytest.mark.parametrize("family", TEMPLATE_FAMILIES)
def test_our_own_by_name(model_folder: Folder, family: str) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder(family, template=MINE), family)
    assert (tokenizer.template_name, tokenizer.template_source) == (family, f"--chat-template {family}")
    assert tokenizer.stop_tokens[0] == TEMPLATE_FAMILIES[family].stop


def test_chatml_without_its_tokens_falls_back_to_ordinary_ones(model_folder: Folder) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("plain"), "chatml")
    assert tokenizer.template_name == "chatml-eos"
    assert "without its tokens" in tokenizer.template_source


def test_a_file_of_ones_own(model_folder: Folder, conversation_of: ConversationMaker, tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(MINE, encoding="utf-8-sig")
    tokenizer = ChatTokenizer.from_folder(model_folder("plain"), str(path))
    assert tokenizer.template_name == "mine.jinja"
    assert supervised_texts(tokenizer, tokenizer.encode(conversation_of(*ASK))) == ["Hello</s>"]


@pytest.mark.parametrize(
    ("wanted", "content", "message"),
    [
        ("chatlm", None, "--chat-template chatlm: no such template; did you mean chatml?  -> one of chatml, qwen"),
        ("gemma", None, "--chat-template gemma: this tokenizer has no <start_of_turn> <end_of_turn>"),
        ("x.jinja", None, "cannot be read: No such file or directory"),
        (
            "x.jinja",
            "{{ messages[0].content }}",
            "the chat template leaves out answers: nothing can be learned with it",
        ),
        ("x.jinja", "{% if %}", "the chat template cannot be read: "),
        ("x.jinja", "{{ raise_exception('no thanks') }}", "refuses a question and an answer: no thanks"),
        ("x.jinja", "{{ messages.append(1) }}", "refuses a question and an answer: "),
    ],
)
def test_templates_that_cannot_be_used(
    model_folder: Folder, tmp_path: Path, wanted: str, content: str | None, message: str
) -> None:
    if wanted == "x.jinja":
        wanted = str(tmp_path / wanted)
        if content is not None:
            Path(wanted).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)):
        ChatTokenizer.from_folder(model_folder("plain"), wanted)


# Folders that cannot be used


def test_a_folder_without_a_tokenizer_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json  -> python -c .*save_pretrained"):
        ChatTokenizer.from_folder(tmp_path)
    (tmp_path / "tinymodel").mkdir()
    with pytest.raises(UserError, match=r"no such folder; did you mean tinymodel\?"):
        ChatTokenizer.from_folder(tmp_path / "tinymodl")


def test_damaged_files_are_told(model_folder: Folder) -> None:
    folder = model_folder("plain")
    (folder / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config\.json  is not JSON"):
        ChatTokenizer.from_folder(folder)
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer\.json  is damaged"):
        ChatTokenizer.from_folder(folder)


def test_named_templates_without_a_default(model_folder: Folder) -> None:
    folder = model_folder("plain", config={"chat_template": [{"name": "tool", "template": MINE}]})
    with pytest.raises(UserError, match="has chat templates tool, but none called default"):
        ChatTokenizer.from_folder(folder)


def test_a_tokenizer_without_any_end(model_folder: Folder) -> None:
    with pytest.raises(UserError, match='no token that ends a text  -> set "eos_token"'):
        ChatTokenizer.from_folder(model_folder("plain", config={}))


# Rows that a template refuses


def test_refused_rows_are_told_or_set_aside(model_folder: Folder, conversation_of: ConversationMaker) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder("gemma"))
    twice = conversation_of(("user", "a"), ("user", "b"), ("assistant", "c"))
    with pytest.raises(UserError, match=r"row 1: .* must alternate.*-> --chat-template chatml"):
        tokenizer.encode(twice)
    with pytest.raises(BadRows, match=r"my\.jsonl:1  the chat template refuses: user and assistant messages"):
        tokenizer.encode_all([conversation_of(*ASK), twice], file="my.jsonl")
    rejected: list[BadRow] = []
    example = tokenizer.encode_all([twice, conversation_of(*ASK)], rejected=rejected)
    assert (len(example[0].input_ids), len(rejected)) == (0, 1)
    assert example[1] == tokenizer.encode(conversation_of(*ASK))
    with pytest.raises(UserError, match="must alternate"):
        tokenizer.prompt_ids(twice.messages)


# Generating


@pytest.mark.parametrize("family", TEMPLATE_FAMILIES)
def test_a_prompt_is_what_training_saw_before_the_answer(
    model_folder: Folder, conversation_of: ConversationMaker, family: str
) -> None:
    tokenizer = ChatTokenizer.from_folder(model_folder(family), family)
    row = conversation_of(("system", "S"), ("user", "Hi"), ("assistant", "Hello"))
    example = tokenizer.encode(row)
    first = example.supervised.index(True)
    assert tokenizer.prompt_ids(row.messages[:-1]) == example.input_ids[:first]
    without = tokenizer.prompt_ids(row.messages[:-1], add_generation_prompt=False)
    assert without == example.input_ids[: len(without)]
    assert len(without) < first


def test_the_date_can_be_frozen(model_folder: Folder) -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }}" + MINE
    folder = model_folder("plain", template=dated)
    frozen = ChatTokenizer.from_folder(folder, today=date(2020, 2, 3))
    assert frozen.render([Message(role="user", content="x")]).startswith("2020-02-03#user#")
    assert frozen.tells_date
    assert not ChatTokenizer.from_folder(model_folder("plain")).tells_date
