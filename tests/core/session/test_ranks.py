import pytest

from qlora_core.session.ranks import SINGLE, Ranks


def test_one_process_is_the_whole_run() -> None:
    assert (SINGLE.rank, SINGLE.world_size, SINGLE.writes, SINGLE.total(7)) == (0, 1, True, 7)


@pytest.mark.parametrize(("device", "place"), [("cuda", 0), ("cpu", "cpu"), ("mps", "mps")])
def test_models_are_placed_where_the_process_computes(device: str, place: int | str) -> None:
    assert SINGLE.place(device) == place


def test_several_processes_are_refused() -> None:
    with pytest.raises(NotImplementedError):
        Ranks(rank=1, world_size=2)
