"""Sets on the hub: a small hub of our own on this machine stands in for it; nothing leaves the machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.command_line import NO_HUB
from support.data_hub import COMMIT, GATED, data_hub

from qlora_core.data.mixture import read_all
from qlora_core.jobs.fetch_data import sampled
from qlora_profiles.errors import UserError
from qlora_profiles.settings import Recipe
from qlora_run.fetch import bring_hub_sets

ROWS = [json.dumps({"instruction": f"Q{n}", "output": f"A{n}"}) + "\n" for n in range(50)]
CONFIGS = "---\nconfigs:\n- config_name: en\n  data_files: en.jsonl\n- config_name: de\n  data_files: de.jsonl\n---\n"
SETS = {
    "org/rows": {"train.jsonl": "".join(ROWS).encode(), "test.jsonl": ROWS[0].encode()},
    "org/two": {"README.md": CONFIGS.encode(), "en.jsonl": b"", "de.jsonl": b""},
    GATED: {},
}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A hub for this process and its children, with an empty cache: the paths that it is asked for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with data_hub(SETS) as (address, asked):
        reach(monkeypatch, address)
        yield asked


def reach(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Let huggingface_hub talk to ``address``, here and in children."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", address)


def recipe(*data: str, **settings: Any) -> Recipe:
    return Recipe(model="m", method="lora", max_length=64, data=data, **settings)


def test_a_sample_is_fetched_once_and_read_without_the_hub(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.jsonl").write_text("".join(ROWS[:25]), encoding="utf-8")
    wanted = recipe("org/rows", "own.jsonl", max_samples=15)
    bring_hub_sets(wanted)
    data = read_all(wanted)
    assert [source.rows for source in data.sources] == [10, 5]  # in proportion to all 50 that the hub has
    assert f"org/rows: train, 15 of 50 rows of commit {COMMIT[:8]}" in data.notes
    assert "org/rows: not read: the splits test" in data.notes
    numbers = [int(row.messages[0].content[1:]) for row in data.conversations[:10]]
    assert numbers == sorted(numbers) != list(range(10))
    del asked[:]
    bring_hub_sets(wanted)
    assert [path for path in asked if "resolve" in path] == []
    reach(monkeypatch, NO_HUB)
    bring_hub_sets(wanted)
    assert "hub unreachable: the copy of commit 11111111 is read" in capsys.readouterr().err
    assert read_all(wanted) == data
    with pytest.raises(UserError, match=r"--data org/rows  its copy on this disk is gone"):
        read_all(recipe("org/rows"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("org/rowz", "neither on this disk nor a set on the hub; did you mean org/rows or org/two?  -> check the name"),
        (GATED, "gated: its owners must let your account in"),
        ("org/rows@v9", "has no revision v9"),
        ("org/two", "has several configs: en, de  -> --data org/two#en"),
    ],
)
def test_refused_in_one_line(asked: list[str], source: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        bring_hub_sets(recipe(source))
    assert words in str(caught.value)


def test_no_network(asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    reach(monkeypatch, NO_HUB)
    with pytest.raises(UserError, match="hub unreachable  -> HF_ENDPOINT=<mirror>, or a local copy: hf download"):
        bring_hub_sets(recipe("org/rows"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and no copy is on this disk"):
        bring_hub_sets(recipe("org/rows"))


def test_a_stream_is_sampled_as_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(ROWS), encoding="utf-8")
    kept, seen = sampled(iter(ROWS), 20, 42)
    drawn = read_all(recipe(str(tmp_path / "a.jsonl"), max_samples=20)).conversations
    assert [json.loads(line)["instruction"] for line in kept] == [row.messages[0].content for row in drawn]
    assert seen == len(ROWS)
