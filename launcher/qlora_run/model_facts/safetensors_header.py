"""The header of a safetensors file: names, dtypes and shapes of its tensors, without their values.

A file is 8 bytes (length N of the header, little-endian), N bytes of JSON, then the values.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qlora_profiles.errors import UserError
from qlora_profiles.units import human_bytes
from qlora_profiles.weight_names import AGAIN

LARGEST_HEADER_BYTES = 100 * 2**20
"""About safetensors' own limit (``MAX_HEADER_SIZE``, 100 million)."""
OTHER_FORMAT = "download the safetensors weights"
OTHER_FILES = (
    (b"version ", "a git-lfs pointer, not the weights", "git lfs pull"),
    (b"PK\x03\x04", "a zip archive, as PyTorch's .bin files are, not safetensors", OTHER_FORMAT),
    (b"\x80\x02", "a Python pickle, not safetensors", OTHER_FORMAT),
    (b"GGUF", "a GGUF file; it is made for inference and cannot be trained", OTHER_FORMAT),
    (b"<", "a web page, not the weights: that was the answer to the download", "hf auth login, and download it again"),
    (b"{", "JSON, not the weights: the download was answered with an error", AGAIN),
    (bytes(8), "zeros from its first byte on: nothing was written there", AGAIN),
)
"""How files begin that lie where weights should: the first bytes, what it is, and what to do."""
BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
"""safetensors' number formats and the bits of one number."""


class TensorInfo(NamedTuple):
    """A tensor that lies in a file: safetensors' dtype name (``BF16``) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def params(self) -> int:
        """Number of values."""
        count = 1
        for side in self.shape:
            count *= side
        return count


Tensors = Mapping[str, TensorInfo]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file.

    Raises:
        UserError: not a safetensors file, cut off, not to be opened, or something else in its place.
    """
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "check its permissions") from error


def _read(path: Path) -> dict[str, TensorInfo]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= LARGEST_HEADER_BYTES:
            raise _something_else(path, start, size_bytes)
        text = file.read(header_bytes)
    if len(text) < header_bytes:
        raise _cut_off(path, size_bytes, 8 + header_bytes)
    entries = _entries(path, text)
    needed_bytes = 8 + header_bytes + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size_bytes < needed_bytes:
        raise _cut_off(path, size_bytes, needed_bytes)
    return {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def _something_else(path: Path, start: bytes, size_bytes: int) -> UserError:
    for begins, what, fix in OTHER_FILES:
        if start.startswith(begins):
            return UserError(f"{path}: {what}", fix)
    return UserError(f"{path}: not a safetensors file ({human_bytes(size_bytes)})", AGAIN)


def _entries(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_once)
        header.pop("__metadata__", None)
        wrong = next((name for name, entry in header.items() if not _sound(entry)), None)
    except _Twice as error:
        raise UserError(f"{path}: names {error} twice", AGAIN) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its safetensors header is damaged", AGAIN) from error
    if wrong is not None:
        raise UserError(f"{path}: its safetensors header is damaged at {wrong!r}", AGAIN)
    return dict(header)


class _Twice(ValueError):
    """A name that stands in a header more than once."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return entries


def _sound(entry: Any) -> bool:
    """Whether an entry has all that tells where a tensor lies, and its place is as large as its shape."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        return False
    shape, place, bits = entry["shape"], entry["data_offsets"], BITS.get(str(entry["dtype"]))
    if not _counts(shape) or not _counts(place) or len(place) != 2:
        return False
    values = TensorInfo("", tuple(shape)).params
    return bits is None or (place[1] - place[0]) * 8 == values * bits


def _counts(listed: Any) -> bool:
    return isinstance(listed, list) and all(type(each) is int and each >= 0 for each in listed)


def _cut_off(path: Path, size_bytes: int, needed_bytes: int) -> UserError:
    held, whole = human_bytes(size_bytes), human_bytes(needed_bytes)
    if held == whole:
        held, whole = f"{size_bytes:,}", f"{needed_bytes:,} bytes"
    return UserError(f"{path}: cut off, {held} of {whole} are there", AGAIN)
