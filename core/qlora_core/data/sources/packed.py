"""Files that are packed: unpacked into memory, never onto the disk."""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from qlora_core.data.sources.data_file import ALLOWED, FORMATS, TABLES
from qlora_profiles.errors import UserError, first_line
from qlora_profiles.suggest import hint

MOST_UNPACKED_BYTES = 4 << 30
"""What one packed file may hold: more is rather unpacked to the disk than into memory. Set by hand."""
PIECE_BYTES = 1 << 22
SHOWN = 5


def _zstandard(file: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.CompressedInputStream(file, "zstd")


_OPENERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": _zstandard,
}
UNPACKED_HERE = (*_OPENERS, ".zip")
_BROKEN = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, RuntimeError)
"""What the readers raise for a damaged file, or for a zip with a password."""


def is_packed(path: Path) -> bool:
    """Whether the file's name says that it is packed in a way that is read here."""
    return path.suffix.lower() in UNPACKED_HERE


def inner_name(path: Path, part: str) -> str:
    """The name of what is read out of a packed file, whose suffix tells the format.

    Raises:
        UserError: a zip that holds no data file, several of them, or none of the name ``part``; names those it holds.
    """
    if path.suffix.lower() != ".zip":
        return path.stem
    return Path(_member(path, part)).name


def unpacked(path: Path, data: bytes, part: str) -> bytes:
    """What a packed file holds.

    Raises:
        UserError: as ``inner_name``, or it is damaged, or holds more than memory is for.
    """
    try:
        if path.suffix.lower() != ".zip":
            with _OPENERS[path.suffix.lower()](io.BytesIO(data)) as file:
                return _all_of(file, path.name)
        with zipfile.ZipFile(io.BytesIO(data)) as packed, packed.open(_member(path, part)) as inner:
            return _all_of(inner, path.name)
    except _BROKEN as error:
        said = f"{path.name}  cannot be unpacked: {first_line(error)[:120]}"
        raise UserError(said, "unpack it, or download it again") from error


def _all_of(file: Any, name: str) -> bytes:
    pieces, size = [], 0
    for piece in _pieces(file):
        pieces.append(piece)
        size += len(piece)
        if size > MOST_UNPACKED_BYTES:
            raise UserError(f"{name}  holds more than {MOST_UNPACKED_BYTES >> 30} GiB", "unpack it to the disk first")
    return b"".join(pieces)


def _pieces(file: Any) -> Iterator[bytes]:
    while piece := file.read(PIECE_BYTES):
        yield piece


def _member(path: Path, part: str) -> str:
    """The name of the file in a zip that is meant."""
    try:
        with zipfile.ZipFile(path) as packed:
            names = [info.filename for info in packed.infolist() if not info.is_dir()]
    except _BROKEN as error:
        raise UserError(f"{path.name}  is no zip file, or a damaged one", "unpack it, or download it again") from error
    if part:
        return _named(path, part, names)
    held = [name for name in names if Path(name).suffix.lower() in (*FORMATS, *TABLES) and not _hidden(name)]
    if len(held) == 1:
        return held[0]
    if not held:
        raise UserError(f"{path.name}  holds no data file: {_listed(names) or 'it is empty'}", f"a file: {ALLOWED}")
    raise UserError(f"{path.name}  holds {len(held)} files: {_listed(held)}", f"--data {path}#{held[0]}")


def _named(path: Path, part: str, names: list[str]) -> str:
    found = [name for name in names if name == part] or [name for name in names if Path(name).name == part]
    if len(found) == 1:
        return found[0]
    raise UserError(f"--data {path}#{part}  the zip has no such file{hint(part, names)}: {_listed(names)}")


def _hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or Path(name).name.startswith(".")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
