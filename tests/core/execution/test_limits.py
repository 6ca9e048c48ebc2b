from collections.abc import Collection
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from qlora_core.execution.limits import Limits
from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.execution.rungs import NAMES, RUNGS, SMALLEST_TOKEN_BUDGET

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=20)
STARTS = st.builds(
    Limits,
    token_budget=st.integers(64, 20_000),
    layers_recomputed=st.integers(0, 36),
    loss_chunk_tokens=st.sampled_from([32, 64, 1024]),
    cuda_graphs=st.booleans(),
    rematerialize_activations=st.booleans(),
    layers_dequantized=st.integers(0, 36),
)


def ladder(start: Limits, lengths: list[int], usable: Collection[str] = NAMES) -> list[Limits]:
    rungs = [start]
    while (below := rungs[-1].smaller(lengths, 36, usable)) is not None:
        rungs.append(below)
    return rungs


@given(STARTS, LENGTHS)
def test_the_ladder_ends_at_the_smallest_execution(start: Limits, lengths: list[int]) -> None:
    last = ladder(start, lengths)[-1]
    assert (last.layers_recomputed, last.loss_chunk_tokens, last.offload_activations) == (36, 32, True)
    assert not last.cuda_graphs
    assert last.layers_dequantized == 0
    assert last.rematerialize_activations
    for name in NAMES:
        assert getattr(ladder(start, lengths, NAMES - {name})[-1], name) == getattr(start, name)
    for batch in make_micro_batches(lengths, last.token_budget):
        assert len(batch) == 1 or sum(lengths[i] for i in batch) < 2 * SMALLEST_TOKEN_BUDGET


@given(STARTS, LENGTHS)
def test_a_smaller_budget_is_taken_only_where_it_cuts_otherwise(start: Limits, lengths: list[int]) -> None:
    for above, below in pairwise(ladder(start, lengths)):
        assert below.token_budget <= above.token_budget
        if below.token_budget < above.token_budget:
            assert make_micro_batches(lengths, below.token_budget) != make_micro_batches(lengths, above.token_budget)


def moves(rungs: list[Limits]) -> list[int]:
    """The places in the table of what changed from each to the next, exactly one setting at a time."""
    changed = [
        [place for place, rung in enumerate(RUNGS) if getattr(above, rung.name) != getattr(below, rung.name)]
        for above, below in pairwise(rungs)
    ]
    assert all(len(places) == 1 for places in changed)
    return [places[0] for places in changed]


@given(STARTS, LENGTHS)
def test_the_table_is_the_order_down_and_backwards_the_order_up(start: Limits, lengths: list[int]) -> None:
    down = ladder(start, lengths)
    assert moves(down) == sorted(moves(down))
    up = [down[-1]]
    while (above := up[-1].larger(start)) is not None:
        up.append(above)
    assert moves(up) == sorted(moves(up), reverse=True)
    assert up[-1] == start


@given(STARTS)
def test_what_is_held_is_given_up_and_nothing_else(start: Limits) -> None:
    rungs = [start]
    while (below := rungs[-1].less_held()) is not None:
        rungs.append(below)
    assert {RUNGS[place].name for place in moves(rungs)} <= {"layers_dequantized", "cuda_graphs"}
    assert (rungs[-1].layers_dequantized, rungs[-1].cuda_graphs) == (0, False)


def test_dequantized_weights_go_first_in_few_steps() -> None:
    start = Limits(token_budget=2048, layers_recomputed=0, layers_dequantized=36, cuda_graphs=True)
    rungs = ladder(start, [100, 200])
    assert [rung.layers_dequantized for rung in rungs[:5]] == [36, 9, 2, 0, 0]
    assert all(rung.cuda_graphs and not rung.rematerialize_activations for rung in rungs[:4])


@given(STARTS, LENGTHS)
def test_growing_back_leads_to_the_start_and_no_further(start: Limits, lengths: list[int]) -> None:
    now = ladder(start, lengths)[-1]
    for _ in range(200):
        above = now.larger(start)
        if above is None:
            break
        now = above
    assert now == start
