"""What makes a machine another one, for all kinds of records and for those that depend on less."""

from typing import Any

import msgspec
import pytest

from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machine_key import MachineKey, digest, machine_key
from qlora_profiles.machines import load_machine, machine_names

HERE = load_machine("linux-2x24gb")
ALLOCATING = ("torch", "bitsandbytes")


def changed(part: str, **values: Any) -> HardwareReport:
    """The machine with other values in one part of its report, or in the report itself."""
    if not part:
        return msgspec.structs.replace(HERE, **values)
    if part == "gpus":
        first, *others = HERE.gpus
        return msgspec.structs.replace(HERE, gpus=(msgspec.structs.replace(first, **values), *others))
    return msgspec.structs.replace(HERE, **{part: msgspec.structs.replace(getattr(HERE, part), **values)})


def with_package(name: str, version: str) -> HardwareReport:
    return changed("", packages=dict(HERE.packages) | {name: version})


def of_card(report: HardwareReport) -> MachineKey:
    return machine_key(report).of_cuda_cards(ALLOCATING, numbers=(0,))


@pytest.mark.parametrize(
    "other",
    [
        changed("gpus", vram_free_bytes=1, temperature_celsius=80, processes=(), drives_display=True),
        changed("disk", output_free_bytes=1),
        changed("memory", ram_available_bytes=1),
        changed("", name="another name", unknown={"gpus": "why"}),
    ],
)
def test_what_comes_and_goes_is_no_part_of_it(other: HardwareReport) -> None:
    assert machine_key(other) == machine_key(HERE)


@pytest.mark.parametrize(
    "other",
    [
        changed("gpus", driver="1.2"),
        changed("gpus", name="another"),
        changed("torch", version="9.9"),
        with_package("BitsAndBytes", "9.9"),
    ],
)
def test_card_driver_and_what_allocates_count_everywhere(other: HardwareReport) -> None:
    assert machine_key(other) != machine_key(HERE)
    assert of_card(other) != of_card(HERE)


@pytest.mark.parametrize(
    "other",
    [
        changed("platform", python="3.99"),
        changed("platform", release="99"),
        changed("torch", cuda="99"),
        with_package("peft", "9.9"),
        changed("", cuda_driver="99"),
        changed("", gpus=HERE.gpus[:1]),
    ],
)
def test_the_rest_counts_only_for_what_depends_on_it(other: HardwareReport) -> None:
    assert machine_key(other) != machine_key(HERE)
    assert of_card(other) == of_card(HERE)


@pytest.mark.parametrize("name", machine_names())
def test_every_machine_has_a_name_for_files_of_its_own(name: str) -> None:
    key = machine_key(load_machine(name))
    assert msgspec.json.decode(msgspec.json.encode(key), type=MachineKey) == key
    assert digest(key) == digest(machine_key(load_machine(name)))
    assert digest(key).isalnum()
    assert (digest(key) == digest(machine_key(HERE))) == (name == "linux-2x24gb")


def test_a_record_may_be_of_some_cards() -> None:
    two = changed("gpus", name="the first")
    first, second = (machine_key(two).of_cuda_cards((), numbers=(number,)) for number in (0, 1))
    assert [card.name for card in first.cards] == ["the first"]
    assert first != second
    assert machine_key(two).of_cuda_cards(()).cards == first.cards + second.cards
    assert machine_key(two).of_cuda_cards((), numbers=(7,)).cards == ()


def test_the_order_of_packages_is_no_difference() -> None:
    backwards = changed("", packages=dict(reversed(HERE.packages.items())))
    assert digest(machine_key(backwards)) == digest(machine_key(HERE))
