"""Machines and what the doctor says of each: every check is seen well and seen ill."""

from dataclasses import replace
from functools import cache

import pytest
from support.doctor_contexts import broke, context, environment_of, found, machine, with_card, worked
from support.doctor_machines import LIGER, MACHINES, ON_AMD, ROCM_OK, amd

from qlora_profiles.hardware import GpuProcess
from qlora_profiles.machines import machine_names
from qlora_profiles.units import GIB
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.diagnosis import exit_code
from qlora_run.doctor.examination import examination_of
from qlora_run.doctor.registry import CHECKS, run_checks
from qlora_run.machine.selftest_results import Trial

BY_NAME = {row[0]: row for row in MACHINES}


@cache
def made(name: str) -> CheckContext:
    return BY_NAME[name][1]()


@pytest.mark.parametrize("name", BY_NAME)
def test_what_the_doctor_says_of(name: str) -> None:
    _, _, expected, code = BY_NAME[name]
    results = found(made(name))
    told = {id: (f.verdict, f.seen) for id, f in results.items() if f.verdict not in ("ok", "skipped")}
    assert {id: results[id].verdict for id in expected} == expected, told
    assert exit_code(run_checks(made(name))) == code, told


def test_the_machines_are_many_and_show_every_check_well_and_ill() -> None:
    assert len(BY_NAME) == len(MACHINES) >= 60
    verdicts: dict[str, set[str]] = {}
    for name in BY_NAME:
        for result in run_checks(made(name)):
            verdicts.setdefault(result.id, set()).add(result.verdict)
    assert verdicts.keys() == {check.id for check in CHECKS}
    always_well = {"driver-model"}  # tells who manages the memory; what that means is the spill's to say
    for id, seen in verdicts.items():
        assert "ok" in seen or id == "several-cards", id
        assert seen & {"note", "warn", "fail"} or id in always_well, id


@pytest.mark.parametrize("name", BY_NAME)
def test_what_is_wrong_says_what_follows_and_the_way_on(name: str) -> None:
    for result in run_checks(made(name)):
        assert result.seen
        assert "\n" not in result.seen
        if result.verdict in ("warn", "fail"):
            assert result.consequence, result
            assert result.fix, result
            assert "\n" not in result.fix.say
        if result.verdict == "skipped":
            assert result.fix is None


@pytest.mark.parametrize("name", machine_names())
def test_another_machine_is_looked_at_and_nothing_is_tried(name: str) -> None:
    results = found(CheckContext(report=machine(name), untried="another machine"))
    assert {results[id].verdict for id in ("4-bit", "varlen", "network", "clock", "cache-folder")} == {"skipped"}
    assert results["4-bit"].seen == "another machine"


def fixes(*contexts: CheckContext) -> list[str]:
    return [f.fix.say for s in contexts for f in run_checks(s) if f.fix and f.verdict in ("warn", "fail")]


def test_each_system_gets_its_own_remedy() -> None:
    hung = broke("triton", "no compiler")
    linux = fixes(context(machine(packages=LIGER), hung))
    windows = fixes(context(machine("windows-12gb", packages=LIGER | {"triton": "", "triton-windows": "3.7"}), hung))
    assert linux == ["sudo apt install gcc python3-dev"]
    assert windows == ["python -m pip install --force-reinstall --no-deps triton-windows"]
    drivers = [
        fixes(context(machine(name, cuda_driver="12.4")))[0] for name in ("linux-12gb", "windows-12gb", "wsl-16gb")
    ]
    assert "ubuntu-drivers" in drivers[0]
    assert "NVIDIA App" in drivers[1]
    assert "in Windows" in drivers[2]


def test_a_cpu_build_beside_a_card_gets_the_line_that_mends_it() -> None:
    (line,) = fixes(context(machine("windows-cpu-torch")))
    assert line == "uv pip install torch --torch-backend=auto --reinstall-package torch"


def test_an_old_card_gets_the_build_that_still_knows_it() -> None:
    volta = found(context(with_card(capability=(7, 0)), *worked(machine()).values()))["known-bad"]
    assert volta.fix is not None
    assert "--torch-backend=cu126" in volta.fix.say
    assert "cuda 13.0, capability 7.0" in volta.seen


def test_no_remedy_names_a_place_to_download_from_or_needs_powershell() -> None:
    for name in BY_NAME:
        for result in run_checks(made(name)):
            lines = (result.fix.say, *result.fix.commands) if result.fix else ()
            for line in lines:
                assert "index-url" not in line
                assert "://" not in line
                assert "powershell" not in line.lower()


def test_who_holds_the_card_is_named() -> None:
    taken = found(context(with_card(processes=(GpuProcess(pid=4121, name="browser", vram_bytes=GIB),))))["vram"]
    assert taken.seen == "browser (pid 4121) holds 1.0 GiB of VRAM"
    assert taken.fix is not None
    assert taken.fix.say == "close it, or: kill 4121"


def test_the_causes_of_a_missing_plan_come_first() -> None:
    holder = GpuProcess(pid=4121, name=None, vram_bytes=11 * GIB)
    full = with_card(vram_free_bytes=GIB // 8, processes=(holder,))
    contained = {"platform": {"container": True}}
    for report, way_on in (
        (full, "close it, or: kill 4121"),
        (with_card(machine_changes=contained, vram_free_bytes=GIB // 8, processes=(holder,)), "nvidia-smi shows who"),
        (machine(disk={"cache_free_bytes": 0, "output_free_bytes": 0}), "qlora-run doctor --cache "),
    ):
        diagnosis = examination_of(context(report)).diagnosis
        assert diagnosis.next.startswith(way_on)
        assert diagnosis.summary.startswith("Not ready: 2 problems (")
        assert ", plan)" in diagnosis.summary


@pytest.mark.parametrize(
    ("folders", "named", "way_on"),
    [
        ((), (), "uv pip install torch --torch-backend=auto --reinstall-package torch"),
        (("/site",), ("/extra",), "uv pip install torch --torch-backend=auto --reinstall-package torch"),
        (("/extra", "/site"), ("/extra", "/more"), "take /extra off PYTHONPATH"),
        (("/user", "/site"), ("/extra",), "python -m pip uninstall -y torch"),
    ],
)
def test_of_several_torches_the_first_one_is_taken_away(
    folders: tuple[str, ...], named: tuple[str, ...], way_on: str
) -> None:
    made = context(machine("windows-cpu-torch"), torch_folders=folders, python_path=named)
    fix = found(made)["torch"].fix
    assert fix is not None
    assert fix.say == way_on
    if "PYTHONPATH" in way_on:
        assert fix.commands == ('setx PYTHONPATH "/more"',)


def test_a_verdict_rests_on_evidence() -> None:
    no_code = found(context(with_card(capability=(13, 0))))["architecture"]
    assert no_code.evidence == "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
    crash = found(context(machine(), broke("nf4", "the process ended (signal 11): Fatal", "crashed")))["4-bit"]
    assert crash.seen == "a 4-bit product: crashed: the process ended (signal 11): Fatal"


def test_an_amd_card_is_told_what_was_really_tried_on_it() -> None:
    both = found(context(amd("rocm"), ROCM_OK, ON_AMD))["gpu"]
    assert both.seen == "Radeon RX 7900 XTX (amd): a product in bfloat16 ran on it, a 4-bit product too"
    assert "it runs on the CPU" in both.consequence
    half = found(context(amd("rocm"), ROCM_OK, ON_AMD, broke("nf4", "no HIP library")))["gpu"]
    assert "a 4-bit product did not: no HIP library" in half.seen
    idle = found(context(amd("cpu")))["gpu"]
    assert "the installed torch does not use it" in idle.seen


def test_a_model_that_is_here_already_needs_no_download() -> None:
    small = machine(disk={"cache_free_bytes": 9 * GIB})
    absent = context(small, model="Qwen/Qwen3-8B")
    assert found(absent)["cache-disk"].verdict == "fail"
    results = found(replace(absent, downloaded=True, here=environment_of(cache_problem="denied")))
    assert results["cache-disk"].verdict == "ok"
    assert results["cache-folder"].verdict == "note"


def test_wsl_spills_whatever_its_driver_says() -> None:
    """The version that Linux sees there is not the one of Windows' driver."""
    assert found(context(with_card("wsl-16gb", driver="531.79")))["spill"].verdict == "note"


def test_who_manages_the_card_on_windows() -> None:
    shared, alone = (with_card("windows-12gb", driver_model=model) for model in ("wddm", "tcc"))
    assert found(context(shared))["driver-model"].seen == "WDDM: the card is shared with Windows"
    assert found(context(alone))["driver-model"].seen == "TCC: the card is ours alone"


def test_a_driver_of_an_older_minor_cuda_runs_a_newer_one() -> None:
    newer = machine(torch={"version": "2.13.0+cu132", "cuda": "13.2"}, cuda_driver="13.0")
    assert found(context(newer))["driver"].verdict == "ok"


def test_a_gated_model_that_is_here_needs_no_token() -> None:
    gated = context(machine(), model="meta-llama/Llama-3.2-1B-Instruct")
    assert found(replace(gated, downloaded=True))["token"].verdict == "ok"


def test_download_and_checkpoints_share_a_disk() -> None:
    """Room for each alone is not room for both."""
    free = 16 * GIB
    one = context(machine(disk={"cache_free_bytes": free, "output_free_bytes": free}), model="Qwen/Qwen3-8B")
    two = context(machine(disk={"cache_free_bytes": free, "output_free_bytes": 99 * GIB}), model="Qwen/Qwen3-8B")
    assert found(one)["cache-disk"].verdict == "fail"
    assert "with its checkpoints" in found(one)["cache-disk"].seen
    assert found(two)["cache-disk"].verdict == "warn"
    assert "with its checkpoints" not in found(two)["cache-disk"].seen


def test_what_torch_says_of_bfloat16_counts_more_than_the_number() -> None:
    emulated = context(machine(), Trial(test="torch", state="ok", found={"bf16": False}))
    assert found(emulated)["bf16"].verdict == "note"
    assert found(CheckContext(report=machine()))["bf16"].verdict == "ok"
