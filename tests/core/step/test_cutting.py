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
def test_no_two_micro_batches_would_fit_in_one(lengths: list[int], budget: int) -> None:
    sizes = sorted(sum(lengths[i] for i in batch) for batch in cut(lengths, budget))
    assert len(sizes) < 2 or sizes[0] + sizes[1] > budget


def test_longest_first_into_the_fullest_that_takes_it() -> None:
    assert cut([2, 7, 5, 3], 10) == [[1, 3], [2, 0]]
