from hypothesis import given
from hypothesis import strategies as st

from qlora_core.execution.micro_batches import make_micro_batches

LENGTHS = st.lists(st.integers(1, 300), max_size=40)


@given(LENGTHS, st.integers(1, 400))
def test_every_example_is_in_exactly_one_micro_batch(lengths: list[int], budget: int) -> None:
    assert sorted(i for batch in make_micro_batches(lengths, budget) for i in batch) == list(range(len(lengths)))


@given(LENGTHS, st.integers(1, 400))
def test_only_an_example_longer_than_the_budget_exceeds_it_and_is_alone(lengths: list[int], budget: int) -> None:
    for batch in make_micro_batches(lengths, budget):
        tokens = sum(lengths[i] for i in batch)
        assert tokens <= budget or len(batch) == 1


@given(LENGTHS, st.integers(1, 400))
def test_no_more_micro_batches_than_half_empty_ones_would_be(lengths: list[int], budget: int) -> None:
    count = len(make_micro_batches(lengths, budget))
    assert count < 2 or 2 * sum(lengths) > count * budget


def tokens_of(lengths: list[int], budget: int) -> list[list[int]]:
    return sorted(sorted(lengths[i] for i in batch) for batch in make_micro_batches(lengths, budget))


def test_as_few_as_possible_and_even() -> None:
    assert tokens_of([2, 7, 5, 3], 10) == [[2, 7], [3, 5]]
    assert tokens_of([100] * 10, 700) == [[100] * 5, [100] * 5]


def test_fuller_where_even_ones_would_not_fit() -> None:
    """The even way would lay 5, 3 and 3 together."""
    assert tokens_of([5, 5, 4, 4, 3, 3, 3], 9) == [[3, 3, 3], [4, 5], [4, 5]]
