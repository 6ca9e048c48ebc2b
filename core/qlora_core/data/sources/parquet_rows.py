"""Rows of a Parquet file."""

from collections.abc import Iterator
from typing import Any

from qlora_core.data.sources.formats import Row, Rows
from qlora_profiles.errors import EnvironmentProblem, UserError, first_line


def parquet_rows(data: bytes, name: str) -> Rows:
    """Rows of a Parquet file's bytes; ``line`` is the row's number.

    Raises:
        EnvironmentProblem: pyarrow is not installed.
        UserError: it is no Parquet file, a damaged one, or holds what cannot be read.
    """
    return (Row(number, columns) for number, columns in enumerate(_columns(data, name), 1))


def _columns(data: bytes, name: str) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise EnvironmentProblem("Parquet needs the package pyarrow", "pip install pyarrow") from error
    try:
        for batch in parquet.ParquetFile(pyarrow.BufferReader(data)).iter_batches():
            yield from batch.to_pylist()
    except Exception as error:
        # a damaged file raises nearly anything: ArrowException, OSError, UnicodeDecodeError, OverflowError ...
        reason = f"{type(error).__name__}: {first_line(error)}"[:200]
        raise UserError(
            f"{name}  a damaged Parquet file, or one that cannot be read ({reason})", "write or download it again"
        ) from error
