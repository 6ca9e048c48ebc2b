"""A data file to conversations: finding it, reading it, and telling what is wrong with it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.cells import Cells, perhaps_empty
from qlora_core.data.rows.row_shapes import RowReader
from qlora_core.data.rows.values import quoted
from qlora_core.data.schema import KNOWN_COLUMNS, Conversation, DataSet, ReadOptions, check_fields
from qlora_core.data.sources.csv_rows import CsvRows
from qlora_core.data.sources.data_file import bytes_of, check_magic, check_there, format_of
from qlora_core.data.sources.decode import decode
from qlora_core.data.sources.formats import Row
from qlora_core.data.sources.json_file import json_rows
from qlora_core.data.sources.parquet_rows import parquet_rows
from qlora_profiles.errors import UserError
from qlora_profiles.suggest import did_you_mean
from qlora_profiles.visible import on_one_line

__all__ = ["check_there", "read_data"]

MOST_CHARACTERS = 10_000_000  # of a row: far more than any context, and about a gigabyte while it is tokenized


def read_data(options: ReadOptions) -> DataSet:
    """Read a file of examples.

    Raises:
        UserError: the file cannot be read, holds no rows or columns that may not be left out, or an option cannot be.
        BadRows: rows cannot be used, and ``skip_bad_rows`` does not set them aside in ``DataSet.rejected``.
    """
    _check(options)
    path = Path(options.path).expanduser()
    data = bytes_of(path)
    file_format, rows, notes = _rows_of(path, data, options)
    reader, cells = RowReader(options), Cells()
    good, bad_rows = _good_and_bad(rows, reader, cells, path.name, options.max_samples)
    rejected = [row for row in bad_rows if not row.between]
    swallowed = rows.warnings() if isinstance(rows, CsvRows) else []
    if bad_rows and not good:
        _check_header(reader, options, path.name, file_format)
    reader.check(path.name)
    if bad_rows and (not options.skip_bad_rows or not good):
        raise BadRows(bad_rows, len(good) + len(rejected))
    if not good:
        raise UserError(f"{path.name}  holds no rows")
    return DataSet(
        path=options.path,
        conversations=good,
        rejected=rejected,
        file_format=file_format,
        row_shape=" + ".join(shape for shape, _ in reader.shapes.most_common()),
        columns_used=list(reader.used),
        columns_not_used=[name for name in reader.columns_seen if name not in reader.used],
        fingerprint=hashlib.sha256(data).hexdigest(),
        notes=_lines([*notes, *_notes(reader, options, len(good)), *cells.notes(), *perhaps_empty(good)]),
        warnings=_lines([*_read_past([row for row in bad_rows if row.between]), *swallowed]),
    )


def _lines(told: list[str]) -> list[str]:
    """What is told, fit for a screen and for a file: it quotes keys, which may hold anything."""
    return [on_one_line(sentence) for sentence in told]


def _read_past(faults: list[BadRow]) -> list[str]:
    """A warning for faults between rows, which were read past as asked."""
    if not faults:
        return []
    more = f", and {len(faults) - 1:,} more such places" if len(faults) > 1 else ""
    return [f"read past {faults[0].file}:{faults[0].line} {faults[0].reason}{more}: rows may be missing there"]


def _check(options: ReadOptions) -> None:
    check_fields(options.fields)
    if options.max_samples is not None and options.max_samples < 1:
        raise UserError(f"--max-samples {options.max_samples}: want 1 or more", "--max-samples 1000, or leave it out")


def _rows_of(path: Path, data: bytes, options: ReadOptions) -> tuple[str, Iterable[Row | BadRow], list[str]]:
    """The file's format as it really is, its rows, and notes on where they were or what its name says otherwise."""
    wanted = format_of(path, options.format)
    check_magic(path, data, wanted)
    if wanted == "parquet":
        return "Parquet", parquet_rows(data, path.name), []
    text = decode(data, options.encoding, path.name, keep_damage=options.skip_bad_rows)
    if wanted == "csv":
        return "CSV", CsvRows(text, path.name), []
    label, rows, notes = json_rows(text, path.name, options.fields)
    expected = "JSONL" if wanted == "jsonl" else "JSON"
    holds = {"JSON": "a JSON list or objects over several lines", "JSONL": "one JSON object per line"}[label]
    surprise = [] if label == expected or notes else [f"{path.name} holds {holds}; read as that"]
    return label, rows, [*surprise, *notes]


def _good_and_bad(
    rows: Iterable[Row | BadRow], reader: RowReader, cells: Cells, name: str, most: int | None
) -> tuple[list[Conversation], list[BadRow]]:
    """Good conversations and bad rows of those that were looked at; stops at ``most`` good ones."""
    good: list[Conversation] = []
    bad_rows: list[BadRow] = []
    for row in rows:
        result = row if isinstance(row, BadRow) else _conversation_or_bad(row, reader, cells, name)
        if isinstance(result, BadRow):
            bad_rows.append(result)
            continue
        good.append(result)
        if len(good) == most:
            break
    return good, bad_rows


def _conversation_or_bad(row: Row, reader: RowReader, cells: Cells, name: str) -> Conversation | BadRow:
    empty = cells.without_value(row.columns)
    cleaned = row._replace(columns=cells.cleaned(row.columns, empty)) if empty else row
    try:
        conversation = reader.conversation(cleaned)
        _check_size(conversation)
    except RowRejected as fault:
        named = ", ".join(f'"{column}" is {text}' for column, text in list(empty.items())[:2])
        reason = f"{fault.reason} ({named}: read as empty)" if empty else fault.reason
        bad = RowRejected(reason, fix=fault.fix, excerpt=fault.excerpt)
        return bad.row(name, row.line, row.raw, row.number)
    except RecursionError:
        return RowRejected("brackets inside brackets, too deep to read").row(name, row.line, row.text, row.number)
    return replace(conversation, number=row.number) if row.number else conversation


def _check_size(conversation: Conversation) -> None:
    """Raise RowRejected for a row that no context holds and whose tokens would take gigabytes."""
    characters = len(conversation.text or "") + sum(len(message.content) for message in conversation.messages)
    if characters > MOST_CHARACTERS:
        reason = f"the row has {characters:,} characters; {MOST_CHARACTERS:,} is the most"
        raise RowRejected(reason, fix="cut it into rows")


def _check_header(reader: RowReader, options: ReadOptions, name: str, file_format: str) -> None:
    """Tell a table whose first line is no header, before telling every row."""
    columns = list(reader.columns_seen)
    if file_format != "CSV" or options.fields or not columns or set(columns) & set(KNOWN_COLUMNS):
        return
    if any(did_you_mean(column, KNOWN_COLUMNS) for column in columns[:20]):
        return
    raise UserError(
        f"{name}:1  names no column that is known: {quoted(columns)} (the first line must be a header)",
        "a first line such as prompt,completion or --field prompt=COLUMN --field completion=COLUMN",
    )


def _notes(reader: RowReader, options: ReadOptions, rows: int) -> list[str]:
    """What a person should know of how the rows were read."""
    first = [f"the first {rows:,} rows in file order (--max-samples)"] if options.max_samples == rows else []
    return [*reader.notes(rows), *first]
