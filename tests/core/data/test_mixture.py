"""Several sources in one recipe: shares, samples, order, digests, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_core.data import DataSet
from qlora_core.data.draw import apportioned, drawn_order, filled, rows_of_share
from qlora_core.data.facts import source_facts
from qlora_core.data.mixture import read_all
from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe

Mix = Callable[..., DataSet]


@pytest.fixture
def mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mix:
    """Reads sources of a folder with a.jsonl (100 rows), b.jsonl (30) and c.csv (10 rows of another shape)."""
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a", 100), ("b", 30)):
        lines = [json.dumps({"prompt": f"{name}{n}", "completion": "yes"}) for n in range(rows)]
        Path(f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    Path("c.csv").write_text("text\n" + "".join(f"c{n}\n" for n in range(10)), encoding="utf-8")

    def read(*data: str, **settings: Any) -> DataSet:
        return read_all(Recipe(model="m", method="lora", max_length=64, data=data, **settings))

    return read


def said(data: DataSet) -> list[str]:
    return [row.text or row.messages[0].content for row in data.conversations]


def test_shares_are_drawn_and_keep_their_order(mix: Mix) -> None:
    data = mix("a.jsonl:0.3", "b.jsonl:5", "c.csv")
    rows = said(data)
    assert Counter(row[0] for row in rows) == {"a": 30, "b": 5, "c": 10}
    assert rows == sorted(rows, key=lambda row: (row[0], int(row[1:])))
    assert rows[:30] != [f"a{n}" for n in range(30)]
    assert [(source.path, source.rows, source.share) for source in data.sources] == [
        ("a.jsonl:0.3", 30, 0.3),
        ("b.jsonl:5", 5, 5),
        ("c.csv", 10, None),
    ]
    assert "a.jsonl:0.3: 30 of 100 rows, drawn by the seed 42" in data.notes
    assert any(note.startswith("sources of several shapes: ") and "c.csv: text" in note for note in data.notes)
    assert {row.file for row in data.conversations} == {"a.jsonl", "b.jsonl", "c.csv"}


def test_a_sample_keeps_the_proportions_and_the_seed_decides(mix: Mix) -> None:
    rows = said(mix("a.jsonl", "b.jsonl", max_samples=13))
    assert Counter(row[0] for row in rows) == {"a": 10, "b": 3}
    assert rows == said(mix("a.jsonl", "b.jsonl", max_samples=13))
    assert rows != said(mix("a.jsonl", "b.jsonl", max_samples=13, seed=7))
    assert said(mix("a.jsonl", "b.jsonl", max_samples=103, sample="first"))[-3:] == ["b0", "b1", "b2"]


def test_a_known_sample_is_the_same_on_every_machine() -> None:
    assert drawn_order(10, 42)[:5] == [1, 9, 7, 3, 2]


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(1, 20_000))
def test_every_source_is_within_one_row_of_its_share(counts: list[int], most: int) -> None:
    taken = apportioned(most, counts)
    total, kept = sum(counts), min(most, sum(counts))
    assert sum(taken) == sum(filled(most, counts)) == kept
    assert all(abs(part - kept * count / total) < 1 for part, count in zip(taken, counts, strict=True))
    assert all(part <= count for part, count in zip(taken, counts, strict=True))


@given(st.floats(0.0001, 0.9999), st.integers(1, 100_000))
def test_a_fraction_is_within_one_row(share: float, rows: int) -> None:
    assert abs(rows_of_share(share, rows) - share * rows) <= 1


@given(st.integers(0, 500), st.integers(0, 2**32 - 1))
def test_every_row_is_drawn_once(rows: int, seed: int) -> None:
    assert sorted(drawn_order(rows, seed)) == list(range(rows))


def test_the_digest_changes_with_any_source_or_share(mix: Mix) -> None:
    from qlora_core.data.pipeline import estimated_facts

    def digest(*data: str) -> str:
        return estimated_facts(Recipe(model="m", method="lora", max_length=64, data=data)).fingerprint

    Path("d.jsonl").write_bytes(Path("b.jsonl").read_bytes())
    mixtures = [("a.jsonl",), ("a.jsonl:0.5",), ("a.jsonl:50",), ("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl")]
    mixtures += [("a.jsonl:0.5", "b.jsonl"), ("a.jsonl", "b.jsonl:5"), ("a.jsonl", "b.jsonl", "c.csv")]
    digests = [digest(*mixture) for mixture in mixtures]
    assert len(set(digests)) == len(digests)
    assert digest("a.jsonl", "d.jsonl") == digest("a.jsonl", "b.jsonl")
    assert digest("a.jsonl:1.0") == digest("a.jsonl") == source_facts(mix("a.jsonl")).fingerprint


def test_bad_rows_are_told_by_their_file_and_drawn_anew(mix: Mix) -> None:
    lines = ['{"prompt": "x", "completion": "y"}' if n % 2 else "{broken" for n in range(40)]
    Path("bad.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.jsonl:1 "):
        mix("a.jsonl", "bad.jsonl")
    data = mix("a.jsonl", "bad.jsonl:15", skip_bad_rows=True)
    assert [source.rows for source in data.sources] == [100, 15]
    assert data.sources[1].rows_rejected == len(data.rejected) > 0


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["a.jsonl", "a.jsonl"], "--data a.jsonl  twice"),
        (["a.jsonl", "./a.jsonl:5"], "both read a.jsonl"),
        ([".", "b.jsonl"], "both read b.jsonl"),
        (["a.jsonl:1.5"], "a share of 1.5 is over 1; want above 0, at most 1  -> a.jsonl:0.3 for 30% of its rows"),
        (["a.jsonl:0"], "no row would be taken"),
        (["a.jsonl:30%"], "30% is no share"),
        (["a.jsonl#x"], "a .jsonl file has no parts"),
        (["*.parquet"], "no file is called like that"),
    ],
)
def test_refused_in_one_line(mix: Mix, sources: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        mix(*sources)
    assert words in str(caught.value)
