"""Tokenized examples at five bytes a token: Python lists would take about forty."""

from collections.abc import Iterable, Sequence
from typing import overload

from qlora_core.data import TokenizedExample


class CachedRows(Sequence[TokenizedExample]):
    """Examples held in an Arrow table (``datasets``), so that a data loader's process copies little.

    ``lengths`` are their numbers of tokens, known without touching the table.
    """

    def __init__(self, rows: Iterable[TokenizedExample]) -> None:
        from datasets import Dataset, Features, List, Value

        features = Features({"input_ids": List(Value("int32")), "supervised": List(Value("bool"))})
        kept = list(rows)
        self.lengths = [len(row.input_ids) for row in kept]
        columns = {name: [getattr(row, name) for row in kept] for name in features}
        self._table = Dataset.from_dict(columns, features=features)

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = self._table[index]
        return TokenizedExample(input_ids=row["input_ids"], supervised=row["supervised"])
