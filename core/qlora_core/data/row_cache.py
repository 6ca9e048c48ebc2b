"""Tokenised rows at five bytes a token: Python lists would take about forty."""

from collections.abc import Iterable, Sequence
from typing import overload

from qlora_core.data import Encoded


class CachedRows(Sequence[Encoded]):
    """Rows held in an Arrow table (``datasets``), so that a data loader's process copies little.

    ``lengths`` are their tokens, known without touching the table.
    """

    def __init__(self, rows: Iterable[Encoded]) -> None:
        from datasets import Dataset, Features, List, Value

        features = Features({"input_ids": List(Value("int32")), "supervised": List(Value("bool"))})
        kept = list(rows)
        self.lengths = [len(row.input_ids) for row in kept]
        columns = {name: [getattr(row, name) for row in kept] for name in features}
        self._table = Dataset.from_dict(columns, features=features)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._table[index]
        return Encoded(input_ids=row["input_ids"], supervised=row["supervised"])
