import pickle

import pytest

from qlora_core.data import TokenizedExample
from qlora_core.data.row_cache import CachedRows

pytestmark = pytest.mark.filterwarnings("default")

ROWS = [TokenizedExample(input_ids=list(range(n)), supervised=[i % 2 == 1 for i in range(n)]) for n in (3, 1, 700)]


def test_rows_come_back_as_they_went_in_also_in_another_process() -> None:
    rows = pickle.loads(pickle.dumps(CachedRows(ROWS)))
    assert list(rows) == ROWS
    assert rows[1:] == ROWS[1:]


def test_no_rows_is_a_set_of_rows_too() -> None:
    assert len(CachedRows([])) == 0


def test_lengths_are_known_without_reading_the_rows() -> None:
    rows = CachedRows(ROWS)
    assert rows.lengths == [len(row.input_ids) for row in rows]
