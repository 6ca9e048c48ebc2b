import json
from pathlib import Path

import pytest

from qlora_profiles.codec import from_json, load, save, to_json
from qlora_profiles.errors import UserError
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machines import load_machine, machine_names

CAPABILITIES = {
    "windows-8gb-turing": [(7, 5)],
    "windows-6gb": [(7, 5)],
    "windows-12gb": [(8, 6)],
    "windows-16gb": [(8, 9)],
    "windows-24gb-4090": [(8, 9)],
    "windows-cpu-torch": [],
    "laptop-6gb": [(8, 6)],
    "linux-8gb": [(8, 6)],
    "linux-12gb": [(8, 6)],
    "linux-16gb-t4": [(7, 5)],
    "linux-24gb": [(8, 6)],
    "linux-2x24gb": [(8, 6), (8, 6)],
    "linux-48gb": [(8, 6)],
    "linux-80gb-a100": [(8, 0)],
    "linux-80gb-h100": [(9, 0)],
    "wsl-16gb": [(8, 9)],
    "blackwell-32gb": [(12, 0)],
    "cpu-only": [],
    "macos-m3": [],
}


def test_shipped_machines_are_the_ones_listed_here() -> None:
    assert machine_names() == sorted(CAPABILITIES)


@pytest.mark.parametrize("name", CAPABILITIES)
def test_cards_that_torch_can_use(name: str) -> None:
    assert [gpu.capability for gpu in load_machine(name).cuda_gpus] == CAPABILITIES[name]


@pytest.mark.parametrize("name", CAPABILITIES)
def test_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    report = load_machine(name)
    assert report.name == name
    assert from_json(to_json(report), HardwareReport, name) == report
    save(report, tmp_path / "copy.json")
    assert load(tmp_path / "copy.json", HardwareReport) == report
    assert load_machine(str(tmp_path / "copy.json")) == report


@pytest.mark.parametrize("name", CAPABILITIES)
def test_numbers_fit_together(name: str) -> None:
    report = load_machine(name)
    memory = report.memory
    assert memory.ram_total_bytes is not None
    assert memory.ram_available_bytes is not None
    assert 0 < memory.ram_available_bytes < memory.ram_total_bytes
    for place, gpu in enumerate(gpu for gpu in report.gpus if gpu.vendor == "nvidia"):
        assert gpu.index == place
        assert gpu.vram_total_bytes is not None
        assert gpu.vram_free_bytes is not None
        assert 0.8 * gpu.vram_total_bytes < gpu.vram_free_bytes < gpu.vram_total_bytes
        assert (gpu.driver_model == "wddm") == report.is_windows
    assert report.packages["torch"] == report.torch.version
    assert report.disk.output_free_bytes is not None


@pytest.mark.parametrize("name", CAPABILITIES)
def test_unknown_keys_are_refused_with_the_nearest_known_one(name: str) -> None:
    whole = json.loads(to_json(load_machine(name)))
    outer = json.dumps(whole | {"cuda_drivers": "13.0"})
    with pytest.raises(UserError, match=r"unknown key cuda_drivers; did you mean cuda_driver"):
        from_json(outer, HardwareReport, name)
    inner = json.dumps(whole | {"memory": {"ram_total_byte": 1}})
    with pytest.raises(UserError, match=r"unknown key ram_total_byte; did you mean ram_total_bytes"):
        from_json(inner, HardwareReport, name)


def test_two_machines_of_one_kind_have_different_cards() -> None:
    uuids = [gpu.uuid for name in machine_names() for gpu in load_machine(name).gpus if gpu.uuid]
    assert len(set(uuids)) == len(uuids)


def test_a_name_nobody_ships_gets_the_nearest_ones() -> None:
    with pytest.raises(UserError, match=r"no machine is called 'windows-12bg'; did you mean windows-12gb") as caught:
        load_machine("windows-12bg")
    assert caught.value.fix is not None
    assert "cpu-only" in caught.value.fix


def test_a_file_that_is_not_there_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"mine\.json: cannot be read"):
        load_machine(str(tmp_path / "mine.json"))


def test_a_folder_is_no_machine(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_machine(str(tmp_path))
