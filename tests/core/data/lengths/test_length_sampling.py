"""What a plan is told of many rows: the longest exactly, the rest from a sample of them."""

import json
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.word_tokenizers import ODD, PLAIN, known, trained
from tokenizers import pre_tokenizers

import qlora_core.data.lengths.length_sampling
from qlora_core.data import BadRow, BadRows, ChatTokenizer, Conversation, Message, TokenCounts
from qlora_core.data.chat.chat_tokenizer import CHUNK_ROWS
from qlora_core.data.examples import RenderedExample
from qlora_core.data.lengths.length_sampling import sample_lengths
from qlora_core.data.lengths.token_counts import token_counts_of
from qlora_core.data.pipeline import read_facts
from qlora_profiles.settings import Recipe, Run

Folder = Callable[..., Path]
ChatOf = Callable[[str], ChatTokenizer]
PIECES = st.sampled_from((*PLAIN, *ODD)) | st.text(max_size=6)
TEXTS = st.lists(PIECES, max_size=14).map(" ".join)
NO_LIMIT = 10**6
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="session")
def chat_of(model_folder: Folder) -> ChatOf:
    @cache
    def load(kind: str) -> ChatTokenizer:
        return ChatTokenizer.from_folder(model_folder("chatml", tokenizer=known(kind)))

    return load


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    supervise_all = draw(st.booleans())
    if draw(st.integers(0, 4)) == 0:
        return Conversation(line=1, text="T" + draw(TEXTS), supervise_all=True)
    messages = []
    for _ in range(draw(st.integers(1, 3))):
        messages.append(
            Message(role="user", content="Q" + draw(TEXTS), supervised=supervise_all and draw(st.booleans()))
        )
        messages.append(
            Message(role="assistant", content="A" + draw(TEXTS), supervised=supervise_all or draw(st.booleans()))
        )
    return Conversation(line=1, messages=tuple(messages), supervise_all=supervise_all)


@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
@given(rows=st.lists(conversations(), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_counted_rows_have_the_counts_of_their_tokens(chat_of: ChatOf, kind: str, rows: list[Conversation]) -> None:
    chat = chat_of(kind)
    examples = chat.encode_all(rows, rejected=[])
    found = chat.count_tokens(rows, 2048, rejected=[])
    assert found.token_counts == [TokenCounts.of(one) for one in examples]
    assert found.counted == len(rows)
    for counts, one in zip(found.token_counts, examples, strict=True):
        assert [counts.supervised_within(most) for most in (0, 5, 9999)] == [
            sum(one.supervised[:most]) for most in (0, 5, 9999)
        ]


def random_conversation(generator: random.Random) -> Conversation:
    """Words of several languages; now and then a long row, or one that is many tokens to few letters."""
    length = int(generator.lognormvariate(3, 0.6))
    kind = generator.random()
    words = [generator.choice(PLAIN) for _ in range(length)]
    if kind < 0.05:
        words += [f"q{generator.getrandbits(60):x}z" for _ in range(length // 3)]
    elif kind < 0.1:
        words = ["the answer"] * (3 * length)
    question = Message(role="user", content=" ".join(words[: length // 3]) or "?")
    return Conversation(
        line=1, messages=(question, Message(role="assistant", content=" ".join(words) or "!", supervised=True))
    )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows are many."""
    monkeypatch.setattr(qlora_core.data.lengths.length_sampling, "MOST_COUNTED_ROWS", 400)
    monkeypatch.setattr(qlora_core.data.lengths.length_sampling, "SAMPLE_ROWS", 200)
    monkeypatch.setattr(qlora_core.data.lengths.length_sampling, "FEWEST_AT_ONCE", 4)


def test_stretches_that_touch_are_one_and_the_first_token_is_never_supervised() -> None:
    tokenizer = known("gpt2")
    text = "<|im_start|>x 1<|im_end|>"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert [text[start:end] for start, end in tokens.offsets] == ["<|im_start|>", "x", " ", "1", "<|im_end|>"]

    def supervised_of(supervise_all: bool, *spans: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return token_counts_of(RenderedExample(text, list(spans), supervise_all), tokens, [2]).supervised

    x, one = (12, 13), (13, 15)
    assert supervised_of(False, x, one) == ((1, 4),)
    assert supervised_of(True, x, one) == ((4, 5),)
    assert supervised_of(True, (0, 12), one) == ((1, 2), (4, 5))
    assert supervised_of(False, (0, 12), (15, 25)) == ((4, 5),)
    assert supervised_of(False, (0, 13)) == ((1, 2),)
    assert supervised_of(True) == ((1, 5),)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(40))
def test_the_longest_is_found_however_loose_the_bounds(seed: int) -> None:
    generator = random.Random(seed)
    lengths = [generator.randint(1, 5000) for _ in range(450)]
    slack = {number: generator.randint(0, 20 * (seed % 3)) for number in range(450)}
    rows = [RenderedExample(str(number), [], True) for number in range(450)]
    counted: list[int] = []

    def count(some: Sequence[RenderedExample]) -> list[TokenCounts]:
        numbers = [int(row.text) for row in some]
        counted.extend(numbers)
        return [TokenCounts(lengths[number], ((0, 1),)) for number in numbers]

    class Bounds:
        def count_words(self, texts: Sequence[str]) -> None:
            slack.update((int(text), 0) for text in texts if seed % 2)

        def upper_bound(self, text: str, enough: int = 0) -> int:
            return lengths[int(text)] + slack[int(text)]

    limit = generator.choice((NO_LIMIT, generator.randint(4000, 5000)))
    found = sample_lengths(rows, count, Bounds(), limit, seed)
    assert max(one.tokens for one in found.token_counts) == max(lengths)
    assert len(counted) == len(set(counted)) == found.counted < 400
    cut = [number for number, one in enumerate(found.token_counts) if one.tokens > limit]
    assert cut == [number for number, tokens in enumerate(lengths) if tokens > limit]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["qwen", "gpt2"])
@pytest.mark.parametrize("seed", range(2))
def test_the_longest_of_many_rows_is_exact_and_the_rest_close(chat_of: ChatOf, kind: str, seed: int) -> None:
    chat, generator = chat_of(kind), random.Random(seed)
    rows = [random_conversation(generator) for _ in range(1500)]
    own = [TokenCounts.of(one) for one in chat.encode_all(rows)]
    found = chat.count_tokens(rows, NO_LIMIT, seed)
    assert max(one.tokens for one in found.token_counts) == max(one.tokens for one in own)
    assert 200 < found.counted < 900
    assert sum(one.tokens for one in found.token_counts) == pytest.approx(sum(one.tokens for one in own), rel=0.05)
    assert supervised_tokens(found.token_counts) == pytest.approx(supervised_tokens(own), rel=0.05)
    assert found == chat.count_tokens(rows, NO_LIMIT, seed)
    assert found.token_counts != chat.count_tokens(rows, NO_LIMIT, seed + 1).token_counts


def supervised_tokens(token_counts: Sequence[TokenCounts]) -> int:
    return sum(one.supervised_within(NO_LIMIT) for one in token_counts)


@pytest.mark.usefixtures("small")
def test_few_rows_that_are_cut_are_counted_and_many_are_estimated(chat_of: ChatOf) -> None:
    chat, generator = chat_of("qwen"), random.Random(5)
    rows = [random_conversation(generator) for _ in range(1500)]
    lengths = sorted(TokenCounts.of(one).tokens for one in chat.encode_all(rows))

    def cut_at(limit: int) -> int:
        found = chat.count_tokens(rows, limit)
        assert max(one.tokens for one in found.token_counts) == lengths[-1]
        return sum(one.tokens > limit for one in found.token_counts)

    assert [cut_at(lengths[-number - 1]) for number in (1, 3, 9)] == [
        sum(length > lengths[-number - 1] for length in lengths) for number in (1, 3, 9)
    ]
    half = lengths[750]
    assert cut_at(half) == pytest.approx(sum(length > half for length in lengths), rel=0.1)


@pytest.mark.usefixtures("small")
def test_a_tokenizer_that_cannot_be_bounded_counts_all_rows(model_folder: Folder) -> None:
    tokenizer = trained([pre_tokenizers.Metaspace()])
    chat, generator = ChatTokenizer.from_folder(model_folder("chatml", tokenizer=tokenizer)), random.Random(1)
    rows = [random_conversation(generator) for _ in range(500)]
    found = chat.count_tokens(rows, 2048)
    assert found.counted == 500
    assert found.token_counts == [TokenCounts.of(one) for one in chat.encode_all(rows)]


@pytest.mark.usefixtures("small")
def test_rows_that_learn_nothing_are_all_counted_before_that_is_told(chat_of: ChatOf) -> None:
    chat, generator = chat_of("qwen"), random.Random(2)
    rows = [random_conversation(generator) for _ in range(500)]
    assert chat.count_tokens(rows, 3).counted == 500


@pytest.mark.usefixtures("small")
def test_facts_of_many_rows_say_that_not_all_were_counted(model_folder: Folder, tmp_path: Path) -> None:
    folder, generator = model_folder("chatml", tokenizer=known("qwen"), files={"config.json": {}}), random.Random(3)
    data = tmp_path / "my.jsonl"
    messages = [random_conversation(generator).messages for _ in range(900)]
    lines = [json.dumps({"prompt": asked.content, "completion": answer.content}) for asked, answer in messages]
    data.write_text("\n".join(lines), encoding="utf-8")
    recipe = Recipe(model=str(folder), method="lora", data=(str(data),), max_length=2048)
    facts = read_facts(recipe, Run(output=""))
    assert facts.counted_rows is not None
    assert 200 <= facts.counted_rows < 900 == facts.rows
    assert f"tokens were counted in {facts.counted_rows:,} rows" in facts.notes[-1]
    assert facts.exact
    data.write_text("\n".join(lines[:400]), encoding="utf-8")
    few = read_facts(recipe, Run(output=""))
    assert few.counted_rows is None
    assert not any("counted" in note for note in few.notes)


def test_refused_rows_come_back_empty_in_their_places(model_folder: Folder) -> None:
    refusing = "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}" + TEMPLATE
    chat, generator = ChatTokenizer.from_folder(model_folder("chatml", template=refusing)), random.Random(4)
    rows = [random_conversation(generator) for _ in range(CHUNK_ROWS + 5)]
    broken = Conversation(line=7, messages=rows[0].messages * 2)
    refused: list[BadRow] = []
    token_counts = chat.count_tokens([broken, *rows], 2048, rejected=refused).token_counts
    assert token_counts == [TokenCounts(0, ()), *(TokenCounts.of(one) for one in chat.encode_all(rows))]
    assert [row.line for row in refused] == [7]
    with pytest.raises(BadRows, match="too long"):
        chat.count_tokens([broken, *rows], 2048)
