from hypothesis import given
from hypothesis import strategies as st

from qlora_core.step.cutting import cut

LENGTHS = st.lists(st.integers(1, 300), max_size=40)


@given(LENGTHS, st.integers(1, 400))
def test_every_example_is_in_exactly_one_micro_batch(lengths: list[int], budget: int) -> None:
    assert sorted(i for batch in cut(lengths, budget) for i in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 400))
def test_only_an_example_longer_than_the_budget_exceeds_it_and_is_alone(lengths: list[int], budget: int) -> None:
    for batch in cut(lengths, budget):
        tokens = sum(lengths[i] for i in batch)
        assert tokens <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 400))
def test_no_more_micro_batches_than_half_empty_ones_would_be(lengths: list[int], budget: int) -> None:
    count = len(cut(lengths, budget))
    assert count < 2 or 2 * sum(lengths) > count * budget


def test_as_few_as_possible_and_even() -> None:
    assert cut([2, 7, 5, 3], 10) == [[1, 0], [2, 3]]
    assert [sum(batch) for batch in cut([1] * 0 + [100] * 10, 700)] == [0 + 2 + 4 + 6 + 8, 1 + 3 + 5 + 7 + 9]


def test_fuller_where_even_ones_would_not_fit() -> None:
    lengths = [5, 5, 4, 4, 3, 3, 3]  # the even way would put 5, 4 and 3 together twice, and 14 on top
    batches = [sorted(lengths[i] for i in batch) for batch in cut(lengths, 9)]
    assert all(sum(batch) <= 9 for batch in batches)
    assert len(batches) == len(cut(lengths, 9))
