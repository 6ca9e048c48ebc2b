"""What an entry of --data means: place, part and share, and what is a set on the hub."""

from pathlib import Path

import pytest

from qlora_profiles.data_source import DataSource, parse_source


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a.jsonl", ("a.jsonl", "", None)),
        ("a.jsonl:0.3", ("a.jsonl", "", 0.3)),
        ("a.jsonl:.5", ("a.jsonl", "", 0.5)),
        ("a.jsonl:1.0", ("a.jsonl", "", None)),
        ("a.jsonl:500", ("a.jsonl", "", 500)),
        ("C:\\x.jsonl", ("C:\\x.jsonl", "", None)),
        ("C:\\x.jsonl:0.25", ("C:\\x.jsonl", "", 0.25)),
        ("C:5", ("C:5", "", None)),
        ("org/name#en/validation:2000", ("org/name", "en/validation", 2000)),
        ("x.zip#in/a.jsonl:5", ("x.zip", "in/a.jsonl", 5)),
        ("hf://datasets/org/name", ("hf://datasets/org/name", "", None)),
    ],
)
def test_place_part_and_share(text: str, wanted: tuple[str, str, float | int | None]) -> None:
    place, part, share = wanted
    source = parse_source(text)
    assert source == DataSource(place=place, part=part, share=share)
    assert type(source.share) is type(share)
    assert parse_source(source.text) == source


@pytest.mark.parametrize(
    ("text", "hub"),
    [
        ("BelleGroup/train_0.5M_CN", ("BelleGroup/train_0.5M_CN", None)),
        ("org/name@v1#en:0.5", ("org/name", "v1")),
        ("hf://datasets/imdb", ("imdb", None)),
        ("https://huggingface.co/datasets/org/name", ("org/name", None)),
        ("data/train.jsonl", None),
        ("./org/name", None),
        ("org/*", None),
        ("there/rows", None),
        ("a/b/c", None),
        ("rows.jsonl", None),
        ("C:\\org\\name", None),
    ],
)
def test_what_is_on_the_hub(
    text: str, hub: tuple[str, str | None] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    assert parse_source(text).hub == hub


def test_a_file_of_that_very_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows#1.jsonl").touch()
    assert parse_source("rows#1.jsonl:5") == DataSource(place="rows#1.jsonl", share=5)
    assert parse_source("rows#1.jsonl:5").in_full().text == f"{tmp_path / 'rows#1.jsonl'}:5"
    assert parse_source("org/name:5").in_full().text == "org/name:5"
