"""The store of what was measured: whole files, none lost to another process, and nothing in it that stops anybody."""

import multiprocessing
import os
import sys
import time
from pathlib import Path

import pytest
from support.stores import Numbers, add_often, hold_and_die

from qlora_profiles.file_lock import file_lock
from qlora_profiles.machine_store import LEFT_BEHIND_SECONDS, LOCK_NAME, MOST_FILE_BYTES, MOST_FILES, MachineStore

SPAWN = multiprocessing.get_context("spawn")
NESTED = '{"numbers": ' + "[" * 200_000 + "]" * 200_000 + "}"


@pytest.fixture
def store(tmp_path: Path) -> MachineStore[Numbers]:
    return MachineStore("numbers", Numbers, tmp_path / "numbers")


def test_what_is_written_is_read(store: MachineStore[Numbers]) -> None:
    assert store.read("a") == (None, None)
    assert store.write("a", Numbers(numbers=(1, 2), name="显卡")) == store.path("a")
    assert store.read("a") == (Numbers(numbers=(1, 2), name="显卡"), None)
    assert "显卡" in store.path("a").read_text(encoding="utf-8")
    store.update("a", lambda before: Numbers(numbers=(*(before.numbers if before else ()), 3)))
    assert store.read("a").value == Numbers(numbers=(1, 2, 3))


def test_records_are_found_by_their_beginning(store: MachineStore[Numbers]) -> None:
    for number, name in enumerate(("a-2", "a-1", "b-1")):
        store.write(name, Numbers(numbers=(number,)))
    assert [found.value.numbers for found in store.read_all("a-") if found.value] == [(1,), (0,)]
    assert store.read_all("c") == []


def test_each_kind_has_a_place_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path))
    assert MachineStore("numbers", Numbers).folder == tmp_path / "machine" / "numbers"


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[]", b'{"numbers": ["x"]}', b'{"other": 1}', b"\x00\xff\xfe", b"\xef\xbb\xbf", NESTED.encode()],
    ids=["empty", "half", "list", "type", "foreign", "binary", "only a mark", "deep"],
)
def test_a_damaged_file_is_a_note_and_is_replaced(store: MachineStore[Numbers], damage: bytes) -> None:
    store.write("a", Numbers())
    store.path("a").write_bytes(damage)
    value, note = store.read("a")
    assert value is None
    assert note is not None
    assert str(store.path("a")) in note
    seen: list[Numbers | None] = []
    store.update("a", lambda before: seen.append(before) or Numbers(numbers=(1,)))  # type: ignore[func-returns-value]
    assert seen == [None]
    assert store.read("a").value == Numbers(numbers=(1,))


def test_what_is_too_large_or_no_file_is_not_read(store: MachineStore[Numbers]) -> None:
    store.write("a", Numbers())
    store.path("a").write_bytes(b" " * MOST_FILE_BYTES + b"{}")
    store.path("b").mkdir()
    assert [found.value for found in store.read_all("")] == [None, None]
    assert all(found.note for found in store.read_all(""))
    assert store.write("b", Numbers()) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_a_pipe_in_a_files_place_keeps_nobody_waiting(store: MachineStore[Numbers]) -> None:
    store.write("a", Numbers())
    os.mkfifo(store.path("b"))
    assert store.read("b").note is not None


def test_a_place_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    blocked = MachineStore("numbers", Numbers, tmp_path / "file" / "below")
    assert blocked.write("a", Numbers()) is None
    assert blocked.read("a").value is None
    assert blocked.read_all("") == []


def test_the_oldest_go_where_there_are_many(store: MachineStore[Numbers]) -> None:
    store.write("first", Numbers())
    for number in range(MOST_FILES):
        path = store.path(f"old-{number:03}")
        path.write_text("{}", encoding="utf-8")
        os.utime(path, (number, number))
    store.write("new", Numbers())
    left = {path.stem for path in store.folder.glob("*.json")}
    assert len(left) == MOST_FILES
    assert {"first", "new", f"old-{MOST_FILES - 1:03}"} <= left
    assert not {"old-000", "old-001"} & left


def test_what_a_killed_process_left_is_cleared_away(store: MachineStore[Numbers]) -> None:
    store.write("a", Numbers())
    old, young = store.folder / "a.json.1.part", store.folder / "a.json.2.part"
    for path in (old, young):
        path.write_text("{", encoding="utf-8")
    long_ago = time.time() - 2 * LEFT_BEHIND_SECONDS
    os.utime(old, (long_ago, long_ago))
    store.write("a", Numbers())
    assert (old.exists(), young.exists()) == (False, True)


def test_processes_that_write_at_once_lose_nothing(store: MachineStore[Numbers]) -> None:
    writers = [SPAWN.Process(target=add_often, args=(str(store.folder), first, 40)) for first in (0, 100, 200)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert store.read("shared").note is None
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    found = store.read("shared").value
    assert found is not None
    assert sorted(found.numbers) == [first + number for first in (0, 100, 200) for number in range(40)]
    assert {path.name for path in store.folder.iterdir()} == {LOCK_NAME, "shared.json"}


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    holder = SPAWN.Process(target=hold_and_die, args=(str(tmp_path / "lock"),))
    holder.start()
    holder.join()
    assert holder.exitcode == 9
    with file_lock(tmp_path / "lock") as held:
        assert held


def test_patience_with_a_holder_ends(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock") as first, file_lock(tmp_path / "lock", patience_seconds=0.05) as second:
        assert (first, second) == (True, False)
    with file_lock(tmp_path / "lock") as held:
        assert held
