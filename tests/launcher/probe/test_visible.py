import pytest

from qlora_run.probe.visible import Card, Pick, order_doubt, select

TWO = (Card("GPU-aaaa-1111", "RTX 3090"), Card("GPU-aabb-2222", "RTX 3090"))
THREE = (*TWO, Card("GPU-cccc-3333", "RTX 4090"))
SLICED = Card("GPU-dddd-4444", "A100", ("MIG-1111-aa", "MIG-2222-bb"))


def order(text: str | None, cards: tuple[Card, ...] = THREE) -> list[int]:
    return [pick.card for pick in select(text, cards).picks]


@pytest.mark.parametrize(
    ("text", "cards"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("  ", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 2 ", [1, 2]),
        ("0,2,-1,1", [0, 2]),
        ("0,7,1", [0]),
        ("7", []),
        ("0,,1", [0]),
        ("1gpu", [1]),  # the driver reads the number at the start
        ("+1", [1]),
        ("gpu1", []),
        ("NoDevFiles", []),
        ("1,1", []),  # named twice: none at all
        ("GPU-cccc-3333", [2]),
        ("GPU-c", [2]),
        ("GPU-cc,GPU-aaaa", [2, 0]),
        ("GPU-aa", []),  # two cards begin so
        ("GPU-cc,GPU-zz,GPU-aaaa", [2]),
        ("GPU-cc,GPU-cccc", []),
        ("gpu-cccc", []),
        ("0,GPU-cccc-3333", [0]),  # the forms do not mix
        ("GPU-cccc-3333,0", [2]),
        ("MIG-1111", []),
    ],
)
def test_whole_cards(text: str | None, cards: list[int]) -> None:
    assert order(text) == cards


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, None),
        ("1,0", None),
        ("0", None),
        ("", "an empty entry"),
        ("-1", "entry '-1' names no card"),
        ("0,7", "entry '7' names no card"),
        ("1,1", "names a card twice"),
    ],
)
def test_a_list_that_loses_cards_says_so(text: str | None, said: str | None) -> None:
    reason = select(text, THREE).reason
    assert (reason is None) if said is None else (reason is not None and said in reason)


def test_no_cards_at_all() -> None:
    assert select(None, ()).picks == ()
    assert select("0", ()).picks == ()


@pytest.mark.parametrize(
    ("text", "pick"),
    [
        (None, Pick(0, 0)),
        ("0", Pick(0, 0)),
        ("GPU-dddd", Pick(0, 0)),
        ("MIG-2222-bb", Pick(0, 1)),
        ("MIG-2", Pick(0, 1)),
    ],
)
def test_mig_instances(text: str | None, pick: Pick) -> None:
    assert select(text, (SLICED,)).picks == (pick,)


def test_one_instance_is_all_that_cuda_numbers() -> None:
    both = select("MIG-2222,MIG-1111", (SLICED,))
    assert both.picks == (Pick(0, 1),)
    assert both.reason is not None
    assert "one instance" in both.reason
    assert select(None, (*TWO, SLICED)).picks == (Pick(2, 0),)


def test_whole_cards_chosen_beside_a_sliced_one_stay() -> None:
    assert select("0,1", (*TWO, SLICED)) == ((Pick(0), Pick(1)), None)


def test_mig_without_an_instance_leaves_the_card_out() -> None:
    empty = Card("GPU-eeee", "A100", ())
    assert select(None, (TWO[0], empty)).picks == (Pick(0),)
    assert select("1", (TWO[0], empty)).picks == ()
    assert "no instance" in (select(None, (empty,)).reason or "")


def test_an_unknown_uuid_matches_nothing() -> None:
    assert order("GPU-a", (Card(None), Card("GPU-a1"))) == [1]


@pytest.mark.parametrize(
    ("text", "variable", "cards", "doubtful"),
    [
        (None, None, THREE, True),
        ("2", None, THREE, True),
        (None, "FASTEST_FIRST", THREE, True),
        (None, "PCI_BUS_ID", THREE, False),
        ("GPU-cccc", None, THREE, False),
        (None, None, TWO, False),  # equal cards keep the bus order
        (None, None, (), False),
    ],
)
def test_order_doubt(text: str | None, variable: str | None, cards: tuple[Card, ...], doubtful: bool) -> None:
    assert (order_doubt(text, variable, cards) is not None) == doubtful
