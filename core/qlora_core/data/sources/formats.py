"""What every format is read into: rows, each with the place that it has in its file."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from qlora_core.data.bad_rows import BadRow


class Row(NamedTuple):
    """One row as it stands in the file: ``line`` counts from 1, ``text`` is its own text where it has one.

    ``number`` counts from 1 too, and is 0 where no two rows can begin on one line.
    """

    line: int
    columns: dict[str, Any]
    text: str = ""
    number: int = 0

    @property
    def raw(self) -> str:
        """The row as text, made from its columns where the file holds none."""
        return self.text or json.dumps(self.columns, ensure_ascii=False, default=str)


Rows = Iterator[Row | BadRow]
