"""The command as a whole: its screen, its JSON, its exit codes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from rich.cells import cell_len
from support.command_line import NO_HUB, process, refused, said
from support.doctor_contexts import broke, context, machine

from qlora_profiles.hardware import Memory
from qlora_profiles.units import GIB
from qlora_run.doctor import examination, network, registry
from qlora_run.doctor.capacity import what_can_be_trained
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.diagnosis import CheckResult, Diagnosis, Fix, diagnose
from qlora_run.doctor.environment import Environment
from qlora_run.doctor.examination import examination_of
from qlora_run.doctor.findings import Finding, ok
from qlora_run.doctor.registry import Check
from qlora_run.machine.selftest_results import Trial
from qlora_run.planner.make_plan import PlanInput
from qlora_run.terminal.doctor_view import print_diagnosis

Caught = pytest.CaptureFixture[str]


def line_of(text: str, id: str) -> str:
    return next(line for line in text.splitlines() if f" {id} " in f"{line} ")


def test_a_machine_that_can_train(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "linux-12gb")
    assert line_of(text, "gpu").startswith(" ok ")
    whole = " ".join(text.split())
    assert "Ready: QLoRA 4-bit on NVIDIA GeForce RTX 3060, " in whole
    assert "GiB usable, Qwen3-8B at up to " in whole
    assert text.splitlines()[-1] == "Next: qlora-run --auto --data FILE"


def test_a_machine_without_a_card_is_never_called_ready(capsys: Caught) -> None:
    text = " ".join(said(capsys, "doctor", "--as", "cpu-only", code=1).split())
    assert "no GPU everything runs on the CPU, slowly -> qlora-run demo works here" in text
    assert "CPU only: the demo works (a few minutes). An 8B does not fit into this memory. Next: qlora-run demo" in text
    assert "ready" not in text.lower()
    roomy = machine("cpu-only", memory=Memory(ram_total_bytes=64 * GIB, ram_available_bytes=60 * GIB))
    sentence = what_can_be_trained(context(roomy))
    assert "An 8B on 1,000 rows would take about " in sentence
    assert sentence.endswith(" days here.")


def test_the_summary_says_why_unsloth_is_not_used() -> None:
    assert ", Unsloth is not installed." in what_can_be_trained(context(machine("windows-12gb")))
    half = context(machine(packages={"unsloth_zoo": ""}))
    assert half.plan is not None
    assert half.plan.execution["backend"].reason in what_can_be_trained(half)


def test_what_is_wrong_comes_first_with_its_way_on(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "windows-cpu-torch", code=3)
    assert text.splitlines()[1].startswith(" FAIL torch")
    whole = " ".join(text.split())
    assert "is a cpu build: it cannot see the NVIDIA" in whole
    assert "training falls back to the CPU, many times slower" in whole
    assert "Not ready: 1 problem (torch). Mend the first, then: qlora-run doctor" in whole
    assert text.splitlines()[-1] == "Next: uv pip install torch --torch-backend=auto --reinstall-package torch"


def test_a_model_that_does_not_fit_is_a_problem(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "windows-6gb", "--model", "Qwen/Qwen3-32B", code=3)
    assert " FAIL plan" in text


def test_findings_as_json(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "windows-cpu-torch", "--json", code=3)
    diagnosis = msgspec.json.decode(text, type=Diagnosis)
    assert set(msgspec.json.decode(text)) == {"checks", "summary", "next", "exit_code"}
    assert diagnosis.exit_code == 3
    first = diagnosis.checks[0]
    assert (first.id, first.verdict) == ("torch", "fail")
    assert first.fix is not None
    assert first.fix.safe


@pytest.mark.parametrize("width", [80, 60])
def test_the_screen_is_plain_and_fits(width: int, capsys: Caught, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    results = [
        CheckResult(id="gpu", verdict="warn", seen="a card [red]with brackets[/red] and " + "many words " * 12),
        CheckResult(id="a-long-name", verdict="ok", seen="fine"),
        CheckResult(id="small", verdict="ok", seen="fine", minor=True),
        CheckResult(id="varlen", verdict="skipped", seen="no card", minor=True),
        CheckResult(
            id="disk",
            verdict="fail",
            seen="显卡内存不足" * 9,
            consequence="it stops",
            fix=Fix(say="qlora-run plan --cache D:\\big"),
        ),
    ]
    ready = diagnose(results[:4], "Ready: nothing. " + "x " * 70, "qlora-run demo")
    print_diagnosis(diagnose(results, "", ""), "this machine", 1.4)
    print_diagnosis(ready, "this machine", 1.4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "qlora-run doctor: this machine   1.4 s"
    assert lines[1].startswith(" FAIL disk         显卡")
    assert "                   it stops" in lines
    assert "                   -> qlora-run plan --cache D:\\big" in lines
    assert " ok   also: small" in lines
    assert " -    not looked at: varlen" in lines
    assert any("[red]with brackets[/red]" in line for line in lines)
    assert not any("[green]" in line or "\x1b" in line or line != line.rstrip() for line in lines)
    assert max(map(cell_len, lines)) <= width


def test_exit_codes() -> None:
    assert examination_of(context(machine())).diagnosis.exit_code == 0
    assert examination_of(context(machine(), broke("varlen"))).diagnosis.exit_code == 1
    assert examination_of(context(machine(), broke("nf4"))).diagnosis.exit_code == 3


def test_quick_tries_nothing_and_asks_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path))

    def forbidden(*args: object, **more: object) -> object:
        raise AssertionError("this takes time")

    monkeypatch.setattr(examination, "try_all", forbidden)
    monkeypatch.setattr(network, "_answers", forbidden)
    looked = examination.examine(PlanInput(), quick=True)
    verdicts = {f.id: f for f in looked.diagnosis.checks}
    assert verdicts["4-bit"].verdict == verdicts["network"].verdict == "skipped"
    assert verdicts["4-bit"].seen == "not tried with --quick"
    assert verdicts["cache-folder"].verdict == "ok"


def test_quick_remembers_what_was_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_RUN_CACHE", str(tmp_path))
    monkeypatch.setattr(examination, "try_all", lambda report: {"nf4": Trial(test="nf4", state="ok", seconds=0.2)})
    monkeypatch.setattr(examination, "read_environment", lambda *a, **k: Environment(looked=True))
    first = examination.examine(PlanInput())
    again = examination.examine(PlanInput(), quick=True)
    seen = [{f.id: f.seen for f in one.diagnosis.checks}["4-bit"] for one in (first, again)]
    assert seen == ["a real NF4 product ran in 0.2 s", "a real NF4 product ran when the doctor last tried"]


def test_apply_belongs_to_fix_and_to_this_machine(
    capsys: Caught, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "qlora-run doctor --fix --apply" in refused(capsys, "doctor", "--apply")
    text = refused(capsys, "doctor", "--as", "windows-cpu-torch", "--fix", "--apply")
    assert "mends this machine only" in text


def test_another_machines_fixes_are_its_own_systems(capsys: Caught) -> None:
    text = said(capsys, "doctor", "--as", "windows-cpu-torch", "--fix", code=3)
    assert text.splitlines()[:2] == ["@echo off", "REM made by: qlora-run doctor --fix"]
    assert "python -m pip install uv" in text.splitlines()


def test_the_doctor_looks_at_this_machine(tmp_path: Path) -> None:
    """As a whole, in a folder where a file is called as a module of the standard library."""
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong one')\n", encoding="utf-8")
    command = [sys.executable, "-P", "-m", "qlora_run"]
    cache = {"QLORA_RUN_CACHE": str(tmp_path / "cache"), "PYTHONIOENCODING": "gbk"}
    done = process("doctor", cwd=tmp_path, command=command, env=cache)
    text = done.stdout.decode("gbk")
    assert done.returncode == 1, text
    assert line_of(text, "4-bit").startswith(" ok ")
    assert line_of(text, "network").startswith(" note ")
    assert (done.stderr, "Ready" in text, "[/]" in text) == (b"", False, False)
    assert len(list((tmp_path / "cache" / "machine" / "selftest_results").glob("*.json"))) == 1


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", NO_HUB)
    silent = network.look()
    assert (silent.state, silent.host) == ("silent", "127.0.0.1:9")
    assert silent.said
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:password@mirror.example")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:password@mirror.example")
    monkeypatch.setattr(network, "_answers", lambda address, seconds: "")
    answers = network.look()
    assert (answers.state, answers.host, answers.mirror) == ("answers", "mirror.example", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert network.look().state == "offline"


def test_a_context_without_anything_known_is_skipped_not_invented() -> None:
    nothing = CheckContext(report=machine())
    silent = replace(nothing, here=Environment(looked=True))
    for one in (nothing, silent):
        ids = {f.id: f.verdict for f in examination_of(one).diagnosis.checks}
        assert ids["plan"] == ids["clock"] == ids["network"] == "skipped"


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("yaml", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from qlora_run.__main__ import main
sys.exit(main())
"""


def test_an_environment_with_holes_is_examined_too(tmp_path: Path) -> None:
    (tmp_path / "holes.py").write_text(WITHOUT, encoding="utf-8")
    env = {"QLORA_RUN_CACHE": str(tmp_path / "cache")}
    done = process("doctor", cwd=tmp_path, env=env, command=[sys.executable, str(tmp_path / "holes.py")])
    text = " ".join(done.stdout.decode().split())
    assert done.returncode == 3, done.stderr
    assert done.stderr == b""
    assert "FAIL plan the package yaml cannot be imported" in text
    assert "a real NF4 product ran" in text


def test_a_look_that_fails_spoils_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: CheckContext) -> Finding:
        raise KeyError("surprise")

    checks = (Check(id="a", about="", look=broken), Check(id="b", about="", look=lambda s: ok("fine")))
    monkeypatch.setattr(registry, "CHECKS", checks)
    first, second = registry.run_checks(CheckContext(report=machine()))
    assert (first.verdict, first.seen) == ("note", "could not be looked at: KeyError: 'surprise'")
    assert second.verdict == "ok"


def test_the_doctor_is_a_command_of_its_own(tmp_path: Path) -> None:
    done = process("doctor", "--help", cwd=tmp_path)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert all(option in text for option in ("--quick", "--fix", "--apply", "--report"))
    assert isinstance(done, subprocess.CompletedProcess)
