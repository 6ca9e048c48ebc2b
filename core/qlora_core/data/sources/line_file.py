"""A JSONL file that is too large to hold: read from the disk line by line, and only those lines that are wanted."""

import hashlib
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path

from qlora_core.data.bad_rows import BadRow, RowRejected
from qlora_core.data.sources.formats import Row
from qlora_core.data.sources.json_rows import WHITESPACE, is_line_by_line, object_or_bad
from qlora_core.data.sources.json_text import parse_line

LARGE_BYTES = 64 << 20
"""From here on; smaller files are read at once, in any layout. Set by hand."""
HEAD_BYTES = 1 << 20


def is_line_file(path: Path) -> bool:
    """Whether a file is large, UTF-8 as far as its beginning tells, and one object a line."""
    if path.stat().st_size < LARGE_BYTES:
        return False
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    lines = head[: head.rfind(b"\n") + 1]
    try:
        text = lines.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        return False
    return text.lstrip(WHITESPACE).startswith("{") and b"\0" not in lines and is_line_by_line(text)


def digest_and_rows(path: Path) -> tuple[str, int]:
    """SHA-256 of the bytes in hexadecimal, and the number of rows: lines that are not blank."""
    about = path.stat()
    return _digest_and_rows(path, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest_and_rows(path: Path, size_bytes: int, changed_ns: int) -> tuple[str, int]:
    """The same, once for a file as it is: it is asked for often, and costs seconds."""
    digest, rows = hashlib.sha256(), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            rows += not line.isspace()
    return digest.hexdigest(), rows


def rows_on_disk(path: Path, name: str, wanted: Collection[int] | None) -> Iterator[tuple[int, Row | BadRow]]:
    """Rows by their places from 0, those of ``wanted`` alone; a row is one line, also where that is broken."""
    index, last = -1, max(wanted, default=-1) if wanted is not None else None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            index += 1
            if last is not None and index > last:
                return
            if wanted is None or index in wanted:
                yield index, _row(line, name, number)


def _row(line: bytes, name: str, number: int) -> Row | BadRow:
    text = line.decode("utf-8", "surrogateescape").rstrip("\r\n")
    text = text.removeprefix("\ufeff") if number == 1 else text
    try:
        return object_or_bad(name, number, parse_line(text), text)
    except RowRejected as fault:
        return fault.row(name, number, text)
