"""What somebody gave on its way into a plan, and back out of one."""

from typing import Any

import pytest

from qlora_profiles.plan import Given, Request, Resolved, Source, strongest


def given(value: Any, source: Source = "cli") -> Given:
    return Given(value=value, source=source)


def test_the_last_level_that_names_a_setting_counts() -> None:
    weak = {"lora_r": given(8, "profile"), "epochs": given(1.0, "profile")}
    merged = strongest(weak, {"epochs": given(2.0, "config")}, {"seed": given(3)})
    assert {name: (g.value, g.source) for name, g in merged.items()} == {
        "lora_r": (8, "profile"),
        "epochs": (2.0, "config"),
        "seed": (3, "cli"),
    }


def test_none_hands_a_tuned_setting_back_and_is_a_value_elsewhere() -> None:
    weak = {"max_length": given(512, "profile"), "max_steps": given(10, "profile")}
    merged = strongest(weak, {"max_length": given(None), "max_steps": given(None)})
    assert {name: g.value for name, g in merged.items()} == {"max_steps": None}
    again = strongest(merged, {"max_length": given(256)})
    assert again["max_length"].value == 256


def test_one_value_more_changes_nothing_else() -> None:
    request = Request(given={"seed": given(1)}, notes=("a note",))
    more = request.giving("model", given("m", "probe")).giving("seed", given(2))
    assert (more.value("model"), more.value("seed"), more.notes) == ("m", 2, ("a note",))
    assert request.value("model") is None


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("cli", "you asked for it"),
        ("config", "your config file says so"),
        ("profile", "the profile says so"),
        ("probe", "given"),
    ],
)
def test_a_value_that_is_kept_says_who_gave_it(source: Source, why: str) -> None:
    assert given(3, source).resolved() == Resolved(3, source, why)
    assert Given(value=3, source=source, reason="your rank 3").resolved().reason == "your rank 3"


def test_what_a_plan_decided_can_be_given_to_another() -> None:
    decided = Resolved(8, "tuner", "fastest of 9 that fit", "4: 3% slower")
    assert decided.given().resolved() == Resolved(8, "tuner", "fastest of 9 that fit")
