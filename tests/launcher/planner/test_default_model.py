"""The model for a person who named none: as large as a night allows."""

import pytest
from support.planning_facts import asking, card_report, cpu_report, data_of, known

from qlora_profiles.hardware import Disk, Gpu, HardwareReport
from qlora_profiles.units import GIB
from qlora_run.planner import default_model, resolve
from qlora_run.planner.default_model import BY_SIZE, MOST_SECONDS


def h100(free_disk_gib: float | None = None) -> HardwareReport:
    gpu = Gpu(name="NVIDIA H100", capability=(9, 0), vram_total_bytes=80 * GIB, vram_free_bytes=79 * GIB)
    disk = Disk(cache_free_bytes=None if free_disk_gib is None else int(free_disk_gib * GIB))
    return card_report(gpus=(gpu,), disk=disk)


def size_of(name: str) -> int:
    return known(name).params


def test_it_grows_with_the_card() -> None:
    names = [default_model(card_report(vram)).name for vram in (1, 4, 6, 8, 12, 16, 24, 80)]
    assert [size_of(name) for name in names] == sorted(map(size_of, names))
    assert names[0] == BY_SIZE[-1]
    assert names[3] == "Qwen/Qwen3-4B"
    assert default_model(h100()).name == "Qwen/Qwen3-32B"


@pytest.mark.parametrize("vram", [4, 6, 8, 12, 16, 24])
def test_what_is_chosen_fits(vram: float) -> None:
    pick = default_model(card_report(vram), data_of())
    assert resolve(card_report(vram), asking(), known(pick.name), data_of()).memory.fits


def test_it_shrinks_with_more_data() -> None:
    names = [default_model(h100(), data_of(rows=rows)).name for rows in (1000, 100_000, 1_000_000)]
    assert size_of(names[0]) > size_of(names[1]) > size_of(names[2])
    for rows, name in zip((1000, 100_000), names, strict=False):
        time = resolve(h100(), asking(), known(name), data_of(rows=rows)).time
        assert time.steps * time.step_seconds <= MOST_SECONDS


def test_it_says_why() -> None:
    assert default_model(card_report(10)).reason.endswith("; Qwen3-14B does not fit")
    assert "in a night: about " in default_model(card_report(10)).reason
    assert default_model(card_report(8.3)).reason.endswith("; Qwen3-8B fits only with activations in main memory")
    assert "Qwen3-32B would take" in default_model(h100(), data_of(rows=100_000)).reason
    assert "of disk to download" in default_model(h100(free_disk_gib=40)).reason
    assert "smallest" in default_model(card_report(1)).reason
    assert default_model(card_report(1)).reason.endswith("does not fit")


def test_without_a_card_it_is_the_smallest() -> None:
    pick = default_model(cpu_report())
    assert pick.name == BY_SIZE[-1]
    assert "smallest" in pick.reason
