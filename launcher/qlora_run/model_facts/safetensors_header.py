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

LARGEST_HEADER_BYTES = 100 * 2**20
"""About safetensors' own limit (``MAX_HEADER_SIZE``, 100 million)."""
LFS_POINTER = b"version "


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
        UserError: not a safetensors file, cut off, or a git-lfs pointer in its place.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == LFS_POINTER:
            raise UserError(f"{path}: a git-lfs pointer, not the weights", "git lfs pull")
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= LARGEST_HEADER_BYTES:
            raise UserError(f"{path}: not a safetensors file ({human_bytes(size_bytes)})", "download it again")
        text = file.read(header_bytes)
    if len(text) < header_bytes:
        raise _cut_off(path, size_bytes, 8 + header_bytes)
    entries = _entries(path, text)
    needed_bytes = 8 + header_bytes + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    if size_bytes < needed_bytes:
        raise _cut_off(path, size_bytes, needed_bytes)
    return {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}


def _entries(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        if all({"dtype", "shape", "data_offsets"} <= entry.keys() for entry in header.values()):
            return dict(header)
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path}: its safetensors header is damaged", "download it again")


def _cut_off(path: Path, size_bytes: int, needed_bytes: int) -> UserError:
    held, whole = human_bytes(size_bytes), human_bytes(needed_bytes)
    if held == whole:
        held, whole = f"{size_bytes:,}", f"{needed_bytes:,} bytes"
    return UserError(f"{path}: cut off, {held} of {whole} are there", "download it again")
