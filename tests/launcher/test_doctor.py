import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.cells import cell_len
from support.command_line import NO_HUB, process, said

from qlora_profiles.hardware import Disk, Gpu, GpuProcess, HardwareReport, Memory, Platform, Torch
from qlora_profiles.machines import load_machine
from qlora_profiles.units import GIB
from qlora_run.doctor import functional, machine, network
from qlora_run.doctor.capacity import what_can_be_trained
from qlora_run.doctor.findings import Diagnosis, Finding, diagnose
from qlora_run.view.doctor_view import print_diagnosis

Caught = pytest.CaptureFixture[str]
GREETINGS = {"torch": {"ok": True, "version": "2.13.0"}, "nf4": {"ok": True, "device": "cpu", "seconds": 0.2}}


def found(report: HardwareReport) -> dict[str, Finding]:
    return {finding.id: finding for finding in machine.findings(report)}


def changed(name: str = "linux-12gb", **changes: Any) -> HardwareReport:
    return msgspec.structs.replace(load_machine(name), **changes)


def card(**changes: Any) -> HardwareReport:
    return changed(gpus=(msgspec.structs.replace(load_machine("linux-12gb").gpus[0], **changes),))


def test_a_machine_that_can_train(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "linux-12gb")
    assert " ok   gpu " in text
    assert "Ready: Qwen3-8B by qlora-4 at up to " in text
    assert "Next: qlora-run --auto --data FILE" in text.splitlines()


def test_a_machine_without_a_card_is_never_called_ready(capsys: Caught) -> None:
    text = " ".join(said(capsys, "doctor", "--as", "cpu-only", code=1).split())
    assert "no GPU: everything runs on the CPU, slowly -> qlora-run demo works here" in text
    assert "CPU only: the demo works (qlora-run demo). An 8B does not fit into this memory." in text
    assert "ready" not in text.lower()
    roomy = changed("cpu-only", memory=Memory(ram_total_bytes=64 * GIB, ram_available_bytes=60 * GIB))
    assert "An 8B on 1,000 rows would take about " in what_can_be_trained(roomy)
    assert " days here." in what_can_be_trained(roomy)


def test_what_is_missing_comes_first_with_its_way_on(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "windows-cpu-torch", code=3)
    assert text.splitlines()[1].startswith(" FAIL torch")
    assert "is a cpu build: it cannot see the NVIDIA card" in text
    assert "-> pip install --force-reinstall torch --index-url URL" in text
    assert "Not ready: 1 problem. Mend the first, then: qlora-run doctor" in text


def test_findings_as_json(capsys: Caught) -> None:
    diagnosis = msgspec.json.decode(
        said(capsys, "doctor", "--as", "windows-cpu-torch", "--json", code=3), type=Diagnosis
    )
    assert diagnosis.exit_code == 3
    assert diagnosis.checks[0].verdict == "fail"


@pytest.mark.parametrize("width", [80, 60])
def test_the_report_is_plain_and_fits(width: int, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    findings = [
        Finding(id="gpu", verdict="slow", seen="a card [red]with brackets[/red] and " + "many words " * 12),
        Finding(id="a-long-name", verdict="ok", seen="fine"),
        Finding(id="disk", verdict="fail", seen="显卡内存不足" * 9, fix="qlora-run plan --cache D:\\big"),
    ]
    print_diagnosis(diagnose(findings, "Ready: nothing. " + "x " * 70), "this machine", 1.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "qlora-run doctor: this machine   1.4 s"
    assert lines[1].startswith(" FAIL disk         显卡")
    assert "                   -> qlora-run plan --cache D:\\big" in lines
    assert any("[red]with brackets[/red]" in line for line in lines)
    assert not any("[green]" in line or "\x1b" in line or line != line.rstrip() for line in lines)
    assert max(map(cell_len, lines)) <= width


def test_cards_that_are_too_old_small_or_taken() -> None:
    old = found(card(capability=(6, 1)))["gpu"]
    assert (old.verdict, old.fix) == ("fail", "CUDA_VISIBLE_DEVICES=-1 qlora-run demo (on the CPU)")
    assert "compute capability 6.1 is too old" in old.seen
    assert "fp16" in found(card(capability=(7, 5)))["gpu"].seen
    assert found(card(vram_total_bytes=4 * GIB))["gpu"].verdict == "slow"
    taken = found(card(processes=(GpuProcess(pid=4121, name="browser", vram_bytes=GIB),)))["vram"]
    assert taken.seen == "browser (pid 4121) holds 1.0 GiB of VRAM"


def test_a_card_whose_driver_is_silent() -> None:
    report = HardwareReport(platform=Platform(system="linux"), unknown={"gpus": "RTX 3060 is there, but ..."})
    assert found(report)["gpu"].seen == "no NVIDIA GPU answers: RTX 3060 is there, but ..."
    amd = HardwareReport(platform=Platform(system="linux"), gpus=(Gpu(name="RX 7900", vendor="amd"),))
    assert "found: RX 7900" in found(amd)["gpu"].seen


def test_software_that_is_missing_or_does_not_match() -> None:
    assert found(changed(torch=Torch()))["torch"].fix == "pip install torch"
    assert found(changed(packages={"torch": "2.13.0"}))["packages"].verdict == "fail"
    assert "bitsandbytes" in str(found(changed(packages={"torch": "2.13.0"}))["packages"].fix)
    driver = found(changed(cuda_driver="12.4"))["driver"]
    assert driver.seen == "the driver offers CUDA 12.4, torch needs 13.0"
    assert "driver" not in found(changed(cuda_driver="13.2"))


def test_little_memory_and_little_disk() -> None:
    tight = changed(memory=Memory(ram_available_bytes=4 * GIB), disk=Disk(output_free_bytes=9 * GIB))
    assert found(tight)["memory"].verdict == "slow"
    assert found(tight)["disk"].seen == "9.0 GiB free; an 8B download needs 16"
    unknown = changed(memory=Memory(), disk=Disk())
    assert not {"memory", "disk"} & set(found(unknown))


# --- what needs to be tried


def answering(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any] | None, code: int = 0) -> dict[str, Finding]:
    """The findings when the self-test prints ``report``."""
    out = "a library's greeting\n" + (json.dumps(report) if report else "")
    done: Any = subprocess.CompletedProcess([], code, out, "Segmentation fault\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: done)
    return {finding.id: finding for finding in functional.findings()}


def test_a_real_product_is_computed_here() -> None:
    findings = {finding.id: finding for finding in functional.findings()}
    assert "a real NF4 product ran on" in findings["4-bit"].seen
    assert {finding.verdict for finding in findings.values()} == {"ok"}


def test_a_crash_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    crashed = answering(monkeypatch, None, code=-11)["4-bit"]
    assert (crashed.verdict, crashed.seen) == ("fail", "the 4-bit test died (exit -11): Segmentation fault")
    failed = GREETINGS | {"nf4": {"ok": False, "error": "RuntimeError: no kernel image"}}
    assert answering(monkeypatch, failed)["4-bit"].seen == "RuntimeError: no kernel image"


def test_a_test_that_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: Any, **options: Any) -> Any:
        raise subprocess.TimeoutExpired("x", options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert functional.findings(0.1)[0].verdict == "fail"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ([8, 6], ["sm_80", "sm_90"], True),
        ([12, 0], ["sm_80", "sm_90"], False),
        ([12, 0], ["sm_90", "compute_90a"], True),
        ([7, 5], ["sm_80", "compute_80"], False),
        ([9, 0], ["sm_90a"], True),
    ],
)
def test_whether_torch_has_code_for_the_card(
    capability: list[int], architectures: list[str], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = {"ok": True, "version": "2.13.0", "capability": capability, "architectures": architectures}
    finding = answering(monkeypatch, GREETINGS | {"torch": torch})["torch import"]
    assert (finding.verdict == "ok") is runs


def test_a_hub_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", NO_HUB)
    (finding,) = network.findings()
    assert (finding.verdict, finding.seen) == ("note", "127.0.0.1:9 is not reachable; local folders work")
    assert "HF_ENDPOINT=<mirror>" in str(finding.fix)
    monkeypatch.setattr(network, "_answers", lambda address, seconds: True)
    assert network.findings()[0].verdict == "ok"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in network.findings()[0].seen


def test_the_doctor_looks_at_this_machine(tmp_path: Path) -> None:
    """As a whole, in a folder where a file is called as a module of the standard library."""
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "qlora_run"]
    done = process("doctor", cwd=tmp_path, command=command, env={"PYTHONIOENCODING": "gbk"})
    text = done.stdout.decode("gbk")
    assert done.returncode == 1, text
    assert " ok   4-bit " in text
    assert " note network " in text
    assert (done.stderr, "Ready" in text, "[/]" in text) == (b"", False, False)
