"""A data file to conversations: finding it, reading it, and telling what is wrong with it."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from qlora_core.data.bad_rows import BadRow, BadRows, RowRejected
from qlora_core.data.rows.messages import quoted
from qlora_core.data.rows.row_shapes import RowReader
from qlora_core.data.schema import Conversation, DataSet, ReadOptions, check_fields
from qlora_core.data.sources.decode import decode
from qlora_core.data.sources.formats import Row, Rows, csv_rows, json_rows, parquet_rows
from qlora_profiles.errors import UserError
from qlora_profiles.suggest import dangling, did_you_mean

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
ALLOWED = ".jsonl, .json, .csv or .parquet"
PARQUET_MAGIC = b"PAR1"
NEARBY = 3


def read_data(options: ReadOptions) -> DataSet:
    """Read a file of examples.

    Raises:
        UserError: the file cannot be read, holds no rows, or an option cannot be.
        BadRows: rows cannot be used, and ``skip_bad_rows`` does not set them aside in ``DataSet.rejected``.
    """
    _check(options)
    path = Path(options.path).expanduser()
    data = _bytes_of(path)
    file_format, rows, notes = _rows_of(path, data, options)
    reader = RowReader(options)
    good, bad_rows, total = _good_and_bad(rows, reader, path.name, options.max_samples)
    if bad_rows and (not options.skip_bad_rows or not good):
        _check_mapped_columns(reader, options, path.name)
        raise BadRows(bad_rows, total)
    if not good:
        raise UserError(f"{path.name}  holds no rows")
    return DataSet(
        path=options.path,
        conversations=good,
        rejected=bad_rows,
        file_format=file_format,
        row_shape=" + ".join(shape for shape, _ in reader.shapes.most_common()),
        columns_used=list(reader.used),
        fingerprint=hashlib.sha256(data).hexdigest(),
        notes=[*notes, *_notes(reader, options, len(good))],
    )


def _check(options: ReadOptions) -> None:
    check_fields(options.fields)
    if options.max_samples is not None and options.max_samples < 1:
        raise UserError(f"--max-samples {options.max_samples}: want 1 or more", "--max-samples 1000, or leave it out")


def check_there(path: Path) -> None:
    """Nothing, where there is such a file.

    Raises:
        UserError: there is none; names those that lie there.
    """
    if path.is_dir():
        raise UserError(f"--data {path}  is a folder{_nearby(path, path.name)}", f"a file: {ALLOWED}")
    if not path.exists():
        raise _not_found(path)


def _bytes_of(path: Path) -> bytes:
    check_there(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--data {path}  cannot be read: {error.strerror or error}", "check its permissions") from error
    if not data.strip(b" \t\r\n"):
        raise UserError(f"{path.name}  is empty", "one JSON object per line, such as a question and its answer")
    return data


def _not_found(path: Path) -> UserError:
    folder = path.parent
    if link := dangling(path):
        return UserError(f"--data {path}  no such file{link}")
    if not folder.is_dir():
        return UserError(f"--data {path}  no such file, and no folder {folder}")
    return UserError(f"--data {path}  no such file{_nearby(folder, path.name)}")


def _nearby(folder: Path, name: str) -> str:
    """``; did you mean X?`` or the data files that lie there."""
    try:
        files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in FORMATS)
    except OSError:
        return ""
    near = did_you_mean(name, files, NEARBY)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; nearby: {', '.join(files[:NEARBY])}" if files else ""


def _rows_of(path: Path, data: bytes, options: ReadOptions) -> tuple[str, Rows, list[str]]:
    """The file's format as it really is, its rows, and a note where its name says otherwise."""
    wanted = _format(path, options)
    _check_magic(path, data, wanted)
    if wanted == "parquet":
        return "Parquet", parquet_rows(path, path.name), []
    text = decode(data, options.encoding, path.name)
    if wanted == "csv":
        return "CSV", csv_rows(text, path.name), []
    label, read = json_rows(text, path.name)
    expected = "JSONL" if wanted == "jsonl" else "JSON"
    holds = {"JSON": "a JSON list or objects over several lines", "JSONL": "one JSON object per line"}[label]
    return label, read(text, path.name), [] if label == expected else [f"{path.name} holds {holds}; read as that"]


def _format(path: Path, options: ReadOptions) -> str:
    if options.format != "auto":
        return options.format
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        shown = f"{suffix} is" if suffix else "a name without a suffix is"
        raise UserError(f"--data {path.name}  {shown} no data format here; allowed: {ALLOWED}", "--data-format jsonl")
    return FORMATS[suffix]


def _check_magic(path: Path, data: bytes, wanted: str) -> None:
    is_parquet = data.startswith(PARQUET_MAGIC)
    if is_parquet and wanted != "parquet":
        raise UserError(f"{path.name}  is a Parquet file", "--data-format parquet")
    if wanted == "parquet" and not is_parquet:
        raise UserError(f"{path.name}  is not a Parquet file", "--data-format jsonl, json or csv")


def _good_and_bad(
    rows: Iterable[Row | BadRow], reader: RowReader, name: str, most: int | None
) -> tuple[list[Conversation], list[BadRow], int]:
    """Good conversations, bad rows, and how many rows were looked at; stops at ``most`` good ones."""
    good: list[Conversation] = []
    bad_rows: list[BadRow] = []
    for row in rows:
        result = row if isinstance(row, BadRow) else _conversation_or_bad(row, reader, name)
        if isinstance(result, BadRow):
            bad_rows.append(result)
            continue
        good.append(result)
        if len(good) == most:
            break
    return good, bad_rows, len(good) + len(bad_rows)


def _conversation_or_bad(row: Row, reader: RowReader, name: str) -> Conversation | BadRow:
    try:
        return reader.conversation(row)
    except RowRejected as fault:
        return fault.row(name, row.line, row.raw)


def _check_mapped_columns(reader: RowReader, options: ReadOptions, name: str) -> None:
    """Tell a mapped column that no row has, before telling every row that lacks it."""
    for wanted, column in options.fields.items():
        is_message_key = wanted in ("role", "from", "content", "value")
        if is_message_key or not reader.columns_seen or column in reader.columns_seen:
            continue
        near = did_you_mean(column, reader.columns_seen)
        found = f"{name} has {quoted(list(reader.columns_seen))}"
        raise UserError(
            f"--field {wanted}={column}  no row has that column; {found}",
            f"--field {wanted}={near[0] if near else 'COLUMN'}",
        )


def _notes(reader: RowReader, options: ReadOptions, rows: int) -> list[str]:
    """What a person should know of how the rows were read."""
    said: list[tuple[bool, Callable[[], str]]] = [
        (len(reader.shapes) > 1, lambda: f"rows of several shapes: {_counts(reader)}"),
        (bool(reader.unused), lambda: f"columns not used: {quoted(list(reader.unused))}"),
        (bool(reader.unused_keys), lambda: f"keys of messages not used: {quoted(list(reader.unused_keys))}"),
        (
            reader.ignored_weights > 0,
            lambda: (
                f"messages that ask to be trained on but are no answers: {reader.ignored_weights:,} (--loss-on all)"
            ),
        ),
        (options.max_samples == rows, lambda: f"the first {rows:,} rows in file order (--max-samples)"),
    ]
    return [sentence() for holds, sentence in said if holds]


def _counts(reader: RowReader) -> str:
    return ", ".join(f"{shape} {count:,}" for shape, count in reader.shapes.most_common())
