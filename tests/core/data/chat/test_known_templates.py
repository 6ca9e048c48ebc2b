"""Templates of seventy families and more on eighteen conversations.

The tokens are those of plain transformers and exactly the answers are supervised, or the refusal says why.
"""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.known_conversations import CONVERSATIONS, KnownConversation
from support.masks import describe_mask
from support.templates import CLOSES, OPENS, TEMPLATES, KnownTemplate
from tokenizers import Tokenizer, processors

from qlora_core.data import ChatTokenizer
from qlora_core.data.chat.message_marks import as_dicts
from qlora_profiles.errors import UserError

TOKENS = re.compile(
    r"<\|[A-Za-z_0-9]+\|>|<｜[^｜<>]+｜>|</?s>|<bos>|<eos>|<(?:start|end)_of_turn>|<extra_id_\d>|<seed:\w+>"
)
MORE_TOKENS = ("]~b]", "[e~[", "[|endofturn|]", "[|user|]", "[|assistant|]", "[gMASK]", "<sop>", "<BOS_TOKEN>")
OTHER_TOKENS = ("<reserved_106>", "<reserved_107>", "<think>", "</think>", "[INST]", "[/INST]")


@pytest.fixture(scope="module")
def one_tokenizer(byte_level: Callable[..., Tokenizer]) -> Tokenizer:
    """A tokenizer that has the tokens of every template."""
    texts = (text for known in TEMPLATES.values() for text in (known.marked, known.bos, *known.stops))
    return byte_level(
        sorted({token for text in texts for token in TOKENS.findall(text)} | {*MORE_TOKENS, *OTHER_TOKENS})
    )


@pytest.fixture(scope="module")
def neutral(one_tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with offsets that keep white space."""
    copy = Tokenizer.from_str(one_tokenizer.to_str())
    copy.post_processor = processors.ByteLevel(trim_offsets=False)
    return copy


@pytest.fixture(scope="module")
def plain_transformers(one_tokenizer: Tokenizer) -> Any:
    """The same tokenizer in plain transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(one_tokenizer.to_str()))


def folder_of(known: KnownTemplate, tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": known.stops[0]} | ({"bos_token": known.bos} if known.bos else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(named), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(known.source, encoding="utf-8", newline="")
    ends = {"eos_token_id": [tokenizer.token_to_id(stop) for stop in known.stops]}
    (folder / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    return folder


class Told:
    """What plain transformers makes of a template and a conversation, and what its marks say is the model's."""

    def __init__(self, known: KnownTemplate, tried: KnownConversation, tokenizer: Any) -> None:
        tokenizer.eos_token, tokenizer.bos_token = known.stops[0], known.bos or None
        given = {
            "conversation": as_dicts(tried.row.messages, text_arguments=known.text_arguments),
            "tools": [*map(dict, tried.row.tools)] or None,
            **({} if known.bos else {"bos_token": ""}),
        }
        self.ids = tokenizer.apply_chat_template(**given, chat_template=known.source, return_dict=False)
        marked = tokenizer.apply_chat_template(**given, chat_template=known.marked, tokenize=False)
        pieces = re.split(f"([{OPENS}{CLOSES}])", marked)
        self.text, self.spans = "", []
        for piece in pieces:
            if piece == OPENS:
                self.spans.append([len(self.text), len(self.text)])
            elif piece == CLOSES:
                self.spans[-1][1] = len(self.text)
            else:
                self.text += piece
        last = tried.row.messages[-1]
        self.appended = known.appended if last.role == "assistant" else ""
        if self.appended:
            self.text += self.appended
            self.spans[-1][1] = len(self.text)

    def supervised(self, tried: KnownConversation, offsets: list[tuple[int, int]]) -> list[bool]:
        answers = [message for message in tried.row.messages if message.role == "assistant"]
        assert len(answers) == len(self.spans)
        wanted = [span for span, message in zip(self.spans, answers, strict=True) if message.supervised]
        inside = [any(a <= start and end <= b and start < end for a, b in wanted) for start, end in offsets]
        return [False, *inside[1:]]


def test_there_are_as_many_as_are_promised() -> None:
    assert len(TEMPLATES) >= 71
    assert len(CONVERSATIONS) == 18


def faults(known: KnownTemplate, tried: KnownConversation, ours: ChatTokenizer, theirs: Any, plain: Tokenizer) -> str:
    """What is wrong with what is learned of a conversation; nothing where it is right."""
    reasons = [reason for what, reason in known.refuses.items() if what in tried.holds]
    try:
        example = ours.encode(tried.row)
    except UserError as refused:
        as_known = reasons and re.search("|".join(reasons), str(refused))
        return "" if as_known else f"refused: {refused}"
    if reasons:
        return f"not refused: {describe_mask(ours, example)}"
    told = Told(known, tried, theirs)
    tail = ours.decode(example.input_ids[len(told.ids) :], skip_special_tokens=False)
    if example.input_ids[: len(told.ids)] != told.ids or tail not in ("", told.appended):
        return f"other tokens: {describe_mask(ours, example)}"
    offsets = plain.encode(told.text, add_special_tokens=False).offsets
    if example.supervised != told.supervised(tried, offsets):
        return f"other mask: {describe_mask(ours, example)} instead of {told.text} {told.spans}"
    return ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_and_masks(
    name: str, one_tokenizer: Tokenizer, neutral: Tokenizer, plain_transformers: Any, tmp_path: Path
) -> None:
    known = TEMPLATES[name]
    ours = ChatTokenizer.from_folder(folder_of(known, one_tokenizer, tmp_path))
    assert ours.template_name == "own"
    found = {
        title: fault
        for title, tried in CONVERSATIONS.items()
        if (fault := faults(known, tried, ours, plain_transformers, neutral))
    }
    assert not found, "\n".join(f"{title}: {fault}" for title, fault in found.items())


@pytest.mark.parametrize(
    ("title", "name"),
    [
        (title, name)
        for title in ("one turn", "reasoning")
        for name in TEMPLATES
        if title not in TEMPLATES[name].refuses
    ],
)
def test_a_model_is_asked_as_it_was_trained(title: str, name: str, one_tokenizer: Tokenizer, tmp_path: Path) -> None:
    known, row = TEMPLATES[name], CONVERSATIONS[title].row
    ours = ChatTokenizer.from_folder(folder_of(known, one_tokenizer, tmp_path))
    (example,) = ours.encode_all([row])
    ours.ask_as_trained()
    assert ours.prompt_ids(row.messages[:-1]) == example.input_ids[: example.supervised.index(True)]
