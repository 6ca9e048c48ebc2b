"""A data file's bytes: that it is there, a file, and of a format that can be read."""

import stat
from pathlib import Path

from qlora_profiles.errors import UserError
from qlora_profiles.suggest import dangling, did_you_mean

FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
ALLOWED = ".jsonl, .json, .csv, .tsv, .parquet or .xlsx, also as .gz, .zip, .zst, .xz or .bz2"
PARQUET_MAGIC = b"PAR1"
NEARBY = 3
TABLES = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
ARCHIVES = (".tgz", ".tar")
MAGIC = {b"PK\x03\x04": ".zip", b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
"""What a file begins with, and the suffix that it should have."""
KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def bytes_of(path: Path) -> bytes:
    """What the file holds.

    Raises:
        UserError: there is no such file, it cannot be read, or nothing is in it.
    """
    check_there(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"--data {path}  cannot be read: {error.strerror or error}", "check its permissions") from error
    if not data.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\n"):
        raise UserError(f"{path.name}  is empty", "one JSON object per line, such as a question and its answer")
    if not data.strip(b"\0 \t\r\n"):
        raise UserError(f"{path.name}  holds nothing but zero bytes: it was never written to its end", "write it again")
    return data


def check_there(path: Path) -> None:
    """Nothing, where there is such a file, or a folder of that name.

    Raises:
        UserError: there is none, or something else than a file or a folder; names those that lie there.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise _not_found(path, error) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "no file")
        raise UserError(f"--data {path}  is {kind}, and data is read more than once", f"write it to a file: {ALLOWED}")


def format_of(path: Path, wanted: str) -> str:
    """``wanted``, or what the file's name tells: ``table`` for a spreadsheet.

    Raises:
        UserError: its name tells no format that can be read; says how to make one of it.
    """
    if wanted != "auto":
        return wanted
    named = path.with_suffix("") if path.suffix.lower() == ".txt" and Path(path.stem).suffix else path
    suffix = named.suffix.lower()
    if suffix in FORMATS:
        return FORMATS[suffix]
    if suffix in TABLES:
        return "table"
    shown = f"{suffix} is" if suffix else "a name without a suffix is"
    raise UserError(f"--data {path.name}  {shown} no data format here; allowed: {ALLOWED}", _conversion(path, suffix))


def _conversion(path: Path, suffix: str) -> str:
    if suffix == ".numbers":
        return "save it as .xlsx or CSV (UTF-8) there"
    if suffix in ARCHIVES:
        return f"unpack it first: python -m tarfile -e {path.name} ."
    return "--data-format jsonl, json or csv, whichever it holds"


def check_magic(path: Path, data: bytes, wanted: str) -> None:
    """Nothing, where the first bytes are not those of another format.

    Raises:
        UserError: they are; names it and the way on.
    """
    is_parquet = data.startswith(PARQUET_MAGIC)
    if is_parquet and wanted != "parquet":
        raise UserError(f"{path.name}  is a Parquet file", "--data-format parquet")
    packed = next((suffix for magic, suffix in MAGIC.items() if data.startswith(magic)), None)
    if packed and wanted != "table":
        kind = "a packed file or a spreadsheet" if packed == ".zip" else f"a packed file ({packed})"
        ends = ".xlsx or .zip, whichever it is" if packed == ".zip" else packed
        way_on = f"let its name end in {ends}"
        raise UserError(f"{path.name}  is {kind}", way_on)
    if wanted == "parquet" and not is_parquet:
        raise UserError(f"{path.name}  is not a Parquet file", "--data-format jsonl, json or csv")


def _not_found(path: Path, error: OSError | ValueError) -> UserError:
    if link := dangling(path):
        return UserError(f"--data {path}  no such file{link}")
    if isinstance(error, FileNotFoundError):
        folder = path.parent
        if not folder.is_dir():
            return UserError(f"--data {path}  no such file, and no folder {folder}")
        return UserError(f"--data {path}  no such file{_nearby(folder, path.name)}")
    reason = getattr(error, "strerror", None) or str(error)
    return UserError(f"--data {path}  cannot be read: {reason}", "another path, or check its permissions")


def _nearby(folder: Path, name: str) -> str:
    """``; did you mean X?`` or the data files that lie there."""
    try:
        files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in FORMATS and file.exists())
    except OSError:
        return ""
    near = did_you_mean(name, files, NEARBY)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; nearby: {', '.join(files[:NEARBY])}" if files else ""
