"""One file of data, opened: what it holds, its rows as often as they are asked for, and its digest."""

import hashlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from qlora_core.data.bad_rows import BadRow
from qlora_core.data.schema import ReadOptions
from qlora_core.data.sources.csv_rows import CsvRows
from qlora_core.data.sources.data_file import bytes_of, check_magic, format_of
from qlora_core.data.sources.decode import decode
from qlora_core.data.sources.formats import Row, Rows
from qlora_core.data.sources.json_file import json_rows
from qlora_core.data.sources.line_file import digest_and_rows, is_line_file, rows_on_disk
from qlora_core.data.sources.located import DataFile
from qlora_core.data.sources.packed import inner_name, is_packed, unpacked
from qlora_core.data.sources.parquet_rows import parquet_rows
from qlora_core.data.sources.saved_set import arrow_rows
from qlora_core.data.sources.spreadsheet import spreadsheet_rows
from qlora_profiles.digests import digest_of

Placed = Iterator[tuple[int, Row | BadRow]]
"""Rows by their places in the file from 0; a fault between two rows has that of the row in front of it."""


class OpenFile(NamedTuple):
    """``rows`` gives those of the places that are wanted, in file order, all for ``None``; ``told`` are warnings of
    those that were given last."""

    label: str
    digest: str
    notes: list[str]
    size: Callable[[], int]
    rows: Callable[[Collection[int] | None], Placed]
    told: Callable[[], list[str]] = list


def open_file(file: DataFile, options: ReadOptions) -> OpenFile:
    """A file, opened.

    Raises:
        UserError: it is not there, empty, damaged, of another format than it says, or not in its encoding.
    """
    if file.saved:
        return _opened("Arrow", digest_of(file.path), [], lambda: arrow_rows(file.path))
    plain = not is_packed(file.path)
    inner = file.path if plain else file.path.with_name(inner_name(file.path, file.part))
    wanted = format_of(inner, options.format)
    if plain and wanted == "jsonl" and options.encoding.lower() in ("utf-8", "utf8") and is_line_file(file.path):
        digest, rows = digest_and_rows(file.path)
        return OpenFile("JSONL", digest, [], lambda: rows, lambda some: rows_on_disk(file.path, file.name, some))
    data = bytes_of(file.path)
    digest = hashlib.sha256(data).hexdigest()
    if not plain:
        data = unpacked(file.path, data, file.part)
    return _of_bytes(file, inner, wanted, data, digest, options)


def _of_bytes(file: DataFile, inner: Path, wanted: str, data: bytes, digest: str, options: ReadOptions) -> OpenFile:
    name = file.name
    check_magic(inner, data, wanted)
    if wanted == "table":
        sheet = "" if is_packed(file.path) else file.part
        notes = spreadsheet_rows(data, name, sheet)[1]
        return _opened("spreadsheet", digest, notes, lambda: spreadsheet_rows(data, name, sheet)[0])
    if wanted == "parquet":
        return _opened("Parquet", digest, [], lambda: parquet_rows(data, name))
    text = decode(data, options.encoding, name, keep_damage=options.skip_bad_rows)
    if wanted == "csv":
        return _table(text, inner.name if inner.suffix.lower() == ".tsv" else name, digest)
    label, _, notes = json_rows(text, name, options.fields)
    expected = "JSONL" if wanted == "jsonl" else "JSON"
    holds = {"JSON": "a JSON list or objects over several lines", "JSONL": "one JSON object per line"}[label]
    surprise = [] if label == expected or notes else [f"{name} holds {holds}; read as that"]
    return _opened(label, digest, [*surprise, *notes], lambda: json_rows(text, name, options.fields)[1])


def _table(text: str, name: str, digest: str) -> OpenFile:
    read = [CsvRows(text, name)]

    def rows() -> Rows:
        read[0] = CsvRows(text, name)
        return iter(read[0])

    return _opened("CSV", digest, [], rows)._replace(told=lambda: read[0].warnings())


def _opened(label: str, digest: str, notes: list[str], rows: Callable[[], Rows]) -> OpenFile:
    return OpenFile(label, digest, notes, lambda: _count(rows()), lambda wanted: _placed(rows(), wanted))


def _count(rows: Rows) -> int:
    return sum(not (isinstance(row, BadRow) and row.between) for row in rows)


def _placed(rows: Rows, wanted: Collection[int] | None) -> Placed:
    index, last = -1, max(wanted, default=-1) if wanted is not None else None
    for row in rows:
        index += not (isinstance(row, BadRow) and row.between)
        if last is not None and index > last:
            return
        if wanted is None or index in wanted:
            yield index, row
