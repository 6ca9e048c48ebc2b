"""The profiles: well-formed, found by name, and honest about other machines."""

import pytest

from qlora_profiles.catalogue import (
    check_profile,
    load_profile,
    nearest_profile,
    profile_names,
)
from qlora_profiles.errors import UserError
from qlora_profiles.machines import load_machine, machine_names
from qlora_profiles.profile_file import read_profile
from qlora_profiles.registry import settings

EXPECTED = (
    "cpu",
    *(f"linux-{size}gb" for size in (6, 8, 12, 16, 24, 48, 80)),
    *(f"windows-{size}gb" for size in (6, 8, 12, 16, 24)),
)


def test_the_profiles_by_name_smallest_first() -> None:
    assert profile_names() == EXPECTED


@pytest.mark.parametrize("name", EXPECTED)
def test_each_profile_names_a_model_a_method_and_a_length(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert {"model", "method", "max_length"} <= profile.settings.keys()
    assert profile.settings.keys() <= settings().keys()
    assert isinstance(profile.settings["max_length"], int)
    assert profile.machine.cpu == (name == "cpu")
    if not profile.machine.cpu:
        assert name == f"{profile.machine.system}-{profile.machine.vram_gib:g}gb"
    assert profile.about
    assert profile.about.isascii()


def test_windows_profiles_start_no_processes_and_page_nothing() -> None:
    for name in EXPECTED:
        profile = load_profile(name)
        if profile.machine.system == "windows":
            assert profile.settings["workers"] == profile.settings["dataset_workers"] == 0
            assert profile.settings["optimizer_kernel"] == "fused"


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown profile window-12gb; did you mean windows-12gb"):
        load_profile("window-12gb")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("about: x\nmachine: {}\nsettings: {lora_rank: 8}", "unknown setting lora_rank"),
        ("about: x\nmachine: {}\nsettings: {lora_r: many}", "lora_r: 'many' is not allowed"),
        ("about: x\nmachine: {}\nsettings: {method: qlora}", "one of qlora-4"),
        ("about: x\nmachine: {}\nsetings: {}\nsettings: {}", "unknown key setings; did you mean settings"),
        ("about: x\nmachine: {vram: 6}\nsettings: {}", "unknown key vram"),
        ("about: x\nmachine: {}", "settings"),
        ("- a list", "list|array"),
        ("a: b: c", "not YAML"),
    ],
)
def test_a_profile_with_a_mistake_is_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read_profile(text, "mine")
    assert caught.value.message.startswith("profile mine: ")


def test_the_nearest_profile_of_each_machine() -> None:
    expected = {
        "cpu-only": "cpu",
        "macos-m3": "cpu",
        "windows-cpu-torch": "cpu",
        "laptop-6gb": "windows-6gb",
        "windows-12gb": "windows-12gb",
        "windows-24gb-4090": "windows-24gb",
        "linux-16gb-t4": "linux-16gb",
        "linux-80gb-h100": "linux-80gb",
        "blackwell-32gb": "linux-24gb",
        "wsl-16gb": "linux-16gb",
    }
    assert {name: nearest_profile(load_machine(name)) for name in expected} == expected


@pytest.mark.parametrize("machine", machine_names())
def test_the_nearest_profile_of_a_machine_differs_in_nothing_that_matters(machine: str) -> None:
    report = load_machine(machine)
    differences = check_profile(load_profile(nearest_profile(report)), report)
    assert not [d for d in differences if "may not fit" in d.effect or "made for" in d.what]


def test_differences_say_what_would_happen() -> None:
    small, large = load_machine("windows-6gb"), load_machine("linux-24gb")
    (too_large,) = check_profile(load_profile("windows-12gb"), small)
    assert too_large.text == (
        "profile windows-12gb is made for 12 GiB of VRAM, this card has 6: "
        "it may not fit; windows-6gb is made for this card"
    )
    system, size = check_profile(load_profile("windows-12gb"), large)
    assert "made for Windows, this is linux" in system.what
    assert "linux-24gb makes more of this card" in size.effect
    (idle,) = check_profile(load_profile("cpu"), large)
    assert "leaves the NVIDIA GeForce RTX 3090 unused" in idle.what


@pytest.mark.parametrize("machine", ["cpu-only", "macos-m3", "windows-cpu-torch"])
def test_what_cannot_run_names_the_profile_that_can(machine: str) -> None:
    with pytest.raises(UserError) as caught:
        check_profile(load_profile("linux-12gb"), load_machine(machine))
    assert str(caught.value.fix).startswith("--profile cpu")
    assert check_profile(load_profile("cpu"), load_machine(machine)) == []
