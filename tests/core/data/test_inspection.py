"""What is shown of data before training: exactly what is learned, and counts that are right."""

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

from qlora_core.data import ChatTokenizer, Conversation, DataSet, ReadOptions, inspect_messages, jsonl, read_data
from qlora_core.data.answers import measure_answers
from qlora_core.data.inspection import decoded_pieces
from qlora_core.data.lengths.histogram import histogram
from qlora_core.data.sample_rows import pick_rows
from qlora_profiles.settings import Recipe

ROW = (
    ("system", "Be brief. 请简短回答。"),
    ("user", "Hello there, what is 你好 in English?"),
    ("assistant", " Hello.\n\n  It is a greeting; 再见 is goodbye. 𠮷"),
    ("user", "Thank you."),
    ("assistant", "draft", False),
    ("user", "And?"),
    ("assistant", "谢谢你的帮助，再见。"),
)


@pytest.fixture(scope="module")
def pieces_and_bytes(byte_level: Callable[..., Tokenizer]) -> Tokenizer:
    """As SentencePiece models decode: a sign for the space, bytes for what is unknown, no space at the beginning."""
    words = ["<s>", "</s>", "<unk>", "▁", *(f"<0x{n:02X}>" for n in range(256)), *map(chr, range(33, 127))]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "I"), ("▁I", "t")]
    words += ["".join(pair) for pair in merges]
    vocabulary = {word: number for number, word in enumerate(words)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return made


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_pieces_are_the_text_and_the_learned_ones_what_the_learned_tokens_say(
    kind: str,
    model_folder: Callable[..., Path],
    pieces_and_bytes: Tokenizer,
    conversation_of: Callable[..., Conversation],
) -> None:
    folder = model_folder("chatml", tokenizer=pieces_and_bytes if kind == "pieces" else None)
    chat = ChatTokenizer.from_folder(folder, "chatml")
    example = chat.encode(conversation_of(*ROW))
    ids = example.input_ids
    whole = chat.decode(ids, skip_special_tokens=False)
    for max_length in [*range(1, len(ids) + 2, 3), len(ids)]:
        pieces = decoded_pieces(chat, ids, example.segments(), max_length)
        assert "".join(piece.text for piece in pieces) == whole
        assert [piece.kind for piece in pieces].count("cut") == (max_length < len(ids))
    learned = [piece.text for piece in pieces if piece.kind == "learned"]
    said = [chat.decode(ids[a:b], skip_special_tokens=False) for learns, a, b in example.segments() if learns]
    assert [text.strip() for text in learned] == [text.strip() for text in said]
    assert [text.strip() for text in learned] == [ROW[2][1].strip() + "<|im_end|>", ROW[6][1] + "<|im_end|>"]


def test_a_cut_inside_a_character_leaves_it_to_what_is_cut(
    model_folder: Callable[..., Path], conversation_of: Callable[..., Conversation]
) -> None:
    chat = ChatTokenizer.from_folder(model_folder("chatml"), "chatml")
    example = chat.encode(conversation_of(("user", "?"), ("assistant", "𠮷𠮷𠮷")))
    first = example.supervised.index(True)
    for tokens in (1, 2, 3):
        learned, cut = decoded_pieces(chat, example.input_ids, example.segments(), first + 4 + tokens)[1:]
        assert (learned.text, cut.text[:2]) == ("𠮷", "𠮷𠮷")


def test_a_histogram_holds_every_row_once_between_round_borders() -> None:
    draw = random.Random(7)
    for _ in range(300):
        lengths = sorted(draw.randint(1, 10 ** draw.randint(1, 5)) for _ in range(draw.randint(1, 200)))
        bins = histogram(lengths)
        assert sum(one.rows for one in bins) == len(lengths)
        assert len(bins) <= 11
        assert all(one.rows == sum(one.low <= n <= (one.high or n) for n in lengths) for one in bins)
        assert all(after.low == (one.high or 0) + 1 for one, after in pairwise(bins))
    tail = histogram([10] * 50 + [20] * 49 + [100_000])[-1]
    assert (tail.high, tail.rows) == (None, 1)
    assert len(histogram([22, 25, 90])) <= 2


def test_rows_are_picked_by_what_they_stand_for_and_by_the_seed() -> None:
    lengths = [5, 9, 2, 7, 7, 7, 7, 7]
    picked = pick_rows(lengths, 5, seed=3)
    assert list(picked.items())[:3] == [(0, ("first",)), (1, ("longest",)), (2, ("shortest",))]
    assert list(picked.values())[3:] == [("random",)] * 2
    assert picked == pick_rows(lengths, 5, seed=3)
    assert {tuple(pick_rows(lengths, 5, seed)) for seed in range(20)} != {tuple(picked)}
    assert pick_rows([4], 4, 0) == {0: ("first", "longest", "shortest")}
    assert pick_rows(lengths, 0, 0) == {}
    assert len(pick_rows(lengths, 100, 0)) == len(lengths)
    assert pick_rows([4, 4], 1, 0) == {0: ("first", "longest", "shortest")}


def test_short_answers_are_counted_by_what_they_say(read: Callable[..., DataSet]) -> None:
    answers = ["ok", "ok", "好的，没问题", "好的，没有问题", "...", "a whole sentence"]
    rows = [json.dumps({"prompt": "q", "completion": answer}) for answer in answers]
    found = measure_answers(read("a.jsonl", "\n".join(rows)).conversations)
    assert (found.count, found.short, found.wordless) == (6, 3, 1)
    assert [(one.text, one.count) for one in found.most_frequent_short] == [("ok", 2), ("...", 1)]


CALL = {
    "id": "c1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": [1, 2.5]}},
}
TOOL = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    "tools.jsonl": (
        json.dumps(
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": "Wetter?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "content": "7", "name": "weather", "tool_call_id": "c1"},
                    {"role": "assistant", "content": "draft", "weight": 0},
                    {"role": "user", "content": "\u2028 and \x1b?"},
                    {"role": "assistant", "content": "7 °C", "reasoning_content": "It says 7."},
                ],
                "tools": [TOOL],
            }
        ),
        {},
    ),
    "share.json": (
        json.dumps([{"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好\n"}]}]),
        {},
    ),
    "table.csv": ('instruction,input,output\n"a, b",c,"d\n\ne"\nf,,g\n', {"system_prompt": "Be kind."}),
    "texts.jsonl": ('{"text": " as it stands \\n"}\n', {}),
    "all.jsonl": (
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        {"loss_on": "all"},
    ),
    "kept_out.jsonl": (
        json.dumps(
            {"messages": [{"role": "user", "content": "a", "train": False}, {"role": "assistant", "content": "b"}]}
        ),
        {"loss_on": "all"},
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_written_rows_are_read_back_as_the_same_conversations(
    name: str, read: Callable[..., DataSet], tmp_path: Path
) -> None:
    content, options = SOURCES[name]
    dataset = read(name, content, **options)
    target = tmp_path / "written.jsonl"
    target.write_text("".join(jsonl(dataset.conversations)), encoding="utf-8", newline="\n")
    again = read_data(ReadOptions(path=str(target), **options))
    assert list(map(_said, again.conversations)) == list(map(_said, dataset.conversations))
    assert again.notes == []


def _said(row: Conversation) -> Any:
    return row.messages, row.tools, row.text, row.supervise_all


def test_without_a_model_rows_are_messages_and_lengths_letters(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(SOURCES["tools.jsonl"][0] + "\n", encoding="utf-8")
    found = inspect_messages(Recipe(model="", data=(str(path),), method="lora", max_length=64), 1)
    assert (found.template, found.cuts, found.lengths.unit) == (None, None, "letters")
    (row,) = found.shown
    assert [piece.role for piece in row.pieces] == [
        *("tools", "system", "user", "assistant calls", "tool", "assistant", "user", "assistant reasoning"),
        "assistant",
    ]
    learned = [piece.text for piece in row.pieces if piece.kind == "learned"]
    assert learned[1:] == ["It says 7.", "7 °C"]
    assert json.loads(learned[0]) == CALL
    assert row.learned == sum(map(len, learned))
    assert found.columns_used == ("messages", "tools")
