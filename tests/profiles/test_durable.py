"""Writes that last: whole or not at all, and never through a link that lies in the way."""

import os
from pathlib import Path

import pytest

from qlora_profiles.digests import digests_of, first_changed
from qlora_profiles.durable import sync_tree, write_whole


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    write_whole(path, "old")

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # where a full disk shows itself at last
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("plan.json", "old")]
    with pytest.raises(OSError, match="No space"):
        sync_tree(tmp_path)


def test_a_file_system_that_cannot_sync_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(number: int) -> None:
        raise OSError(22, "Invalid argument")

    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "file").write_bytes(b"x")
    monkeypatch.setattr(os, "fsync", not_here)
    sync_tree(tmp_path)
    write_whole(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "text"


def test_a_link_where_the_text_is_made_is_not_written_through(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine", encoding="utf-8")
    try:
        (tmp_path / f"plan.json.{os.getpid()}.part").symlink_to(precious)
    except OSError:
        pytest.skip("no links here")
    write_whole(tmp_path / "plan.json", "new")
    assert precious.read_text(encoding="utf-8") == "mine"
    assert (tmp_path / "plan.json").read_text(encoding="utf-8") == "new"
    assert not (tmp_path / "plan.json").is_symlink()


def test_the_first_file_that_is_not_as_it_was(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 100)
    digests = digests_of(tmp_path, ("a", "b", "c"))
    assert first_changed(tmp_path, digests) is None
    (tmp_path / "c").unlink()
    assert first_changed(tmp_path, digests) == "c"
    (tmp_path / "b").write_bytes(b"b" * 99 + b"\0")
    assert first_changed(tmp_path, digests) == "b"
