"""What can lie where a data file should: each is read, or refused in one line."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from qlora_core.data import DataSet, ReadOptions, read_data
from qlora_profiles.errors import UserError

Read = Callable[..., DataSet]
PAIR = '{"prompt": "Hi", "completion": "Hello"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", 'question\tanswer\nHi, you\tHello, "you"\n'),
        ("a.csv", "question\tanswer\nHi, you\tHello\n"),
        ("a.csv", "question|answer\nHi, you|Hello\n"),
        ("a.csv", "id;question;answer\n1;Hi, you;Hello\n"),
        ("a.csv", 'question,answer\r"Hi, you",Hello\r'),
        ("a.jsonl.txt", PAIR.replace("Hi", "Hi, you")),
        ("a.ndjson", "\n\n" + PAIR.replace("Hi", "Hi, you")),
    ],
)
def test_tables_and_names(read: Read, name: str, content: str) -> None:
    (row,) = read(name, content).conversations
    assert row.messages[0].content == "Hi, you"
    assert row.messages[1].content.startswith("Hello")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.numbers", b"PK\x03\x04", ".numbers is no data format here"),
        ("a.tar", b"....", "unpack it first: python -m tarfile -e a.tar ."),
        ("a.csv", b"PK\x03\x04..", "a packed file or a spreadsheet  -> let its name end in .xlsx or .zip"),
        ("a.jsonl.gz", b"\x1f\x8b", "a.jsonl.gz  cannot be unpacked"),
        ("a.zip", b"PK\x03\x04", "a.zip  is no zip file, or a damaged one"),
        ("a.jsonl", b"\x1f\x8b..", "is a packed file"),
        ("a.jsonl", b"\xef\xbb\xbf", "is empty"),
        ("a.jsonl", b"\0" * 99, "nothing but zero bytes"),
        ("a.jsonl", PAIR.encode("utf-32"), "reads cleanly as UTF-32  -> --encoding utf-32"),
        ("a.jsonl", PAIR.encode("utf-32-be"), "reads cleanly as UTF-32-BE"),
        ("a.jsonl", PAIR.encode("utf-16-le"), "reads cleanly as UTF-16-LE"),
        ("a.csv", b"Hi,Hello\nYou,Me\n", 'a.csv:1  names no column that is known: "Hi", "Hello"'),
    ],
)
def test_refused_with_the_way_on(read: Read, name: str, content: bytes, words: str) -> None:
    with pytest.raises(UserError) as caught:
        read(name, content)
    assert words in str(caught.value)


@pytest.mark.parametrize("byte", [b"\xff", b"\xe9", b"\x80"])
def test_a_damaged_byte_in_plain_english_is_one_bad_row(read: Read, byte: bytes) -> None:
    content = PAIR.encode() * 20 + PAIR.encode().replace(b"Hello", b"He" + byte + b"llo") + PAIR.encode()
    with pytest.raises(UserError, match="--skip-bad-rows"):
        read("a.jsonl", content)
    data = read("a.jsonl", content, skip_bad_rows=True)
    assert (len(data.conversations), [row.line for row in data.rejected]) == (21, [21])


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links of POSIX")
def test_pipes_devices_and_links(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "link.jsonl").symlink_to("gone.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    said = {
        "pipe.jsonl": "is a named pipe",
        "link.jsonl": "no such file: a link to gone.jsonl, which is not there",
        "loop.jsonl": "",
    }
    for name, words in said.items():
        with pytest.raises(UserError) as caught:
            read_data(ReadOptions(path=str(tmp_path / name)))
        assert words in str(caught.value)
    with pytest.raises(UserError, match="is a device"):
        read_data(ReadOptions(path="/dev/null", format="jsonl"))


def test_damaged_parquet_is_refused_whatever_it_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"prompt": ["Hi"] * 50, "completion": ["Hello you"] * 50}), path)
    good = path.read_bytes()
    for at in range(4, len(good), 7):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        with suppress(UserError):  # anything else is a fault
            read_data(ReadOptions(path=str(path), skip_bad_rows=True))
    for end in (4, 12, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:end])
        with pytest.raises(UserError, match="damaged Parquet file"):
            read_data(ReadOptions(path=str(path)))


def test_a_row_that_would_take_gigabytes_is_one_bad_row(read: Read) -> None:
    content = PAIR * 3 + PAIR.replace("Hello", "word " * 2_000_001)
    data = read("a.jsonl", content, skip_bad_rows=True)
    assert len(data.conversations) == 3
    assert data.rejected[0].reason == "the row has 10,000,007 characters; 10,000,000 is the most"


def test_wide_rows_and_tables_take_no_longer_than_their_size(read: Read) -> None:
    names = [f"c{n}" for n in range(100_000)]
    with pytest.raises(UserError, match="names no column that is known"):
        read("a.csv", ",".join(names) + "\n" + ",".join(names) + "\n")
