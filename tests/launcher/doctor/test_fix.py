"""Fixes as a script for the system at hand, and the part of it that the doctor may run itself."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.command_line import refused, said
from support.doctor_contexts import broke, context, environment_of, machine

from qlora_profiles.errors import UserError
from qlora_run.__main__ import main
from qlora_run.commands import doctor as command
from qlora_run.doctor import examination, script
from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.examination import Examination, examination_of
from qlora_run.doctor.registry import run_checks

Caught = pytest.CaptureFixture[str]
WINDOWS_CPU_TORCH = context(machine("windows-cpu-torch"), long_paths=False, longest_path=200)
LINUX_ILL = context(machine(packages={"peft": ""}), broke("nf4"), clock_behind_seconds=9e6)
TORCH_LINE = "uv pip install torch --torch-backend=auto --reinstall-package torch"


def script_of(one: CheckContext) -> str:
    return script.script(run_checks(one), one.report)


def test_a_script_for_windows() -> None:
    text = script_of(WINDOWS_CPU_TORCH)
    lines = text.split("\r\n")
    assert lines[0] == "@echo off"
    assert lines[-1] == ""
    assert "\n" not in text.replace("\r\n", "")
    assert "python -m pip install uv" in lines
    assert TORCH_LINE in lines
    assert any(line.startswith("reg add HKLM") for line in lines)
    assert all(line.isascii() for line in lines)
    assert not any("powershell" in line.lower() or line.startswith("#") for line in lines)


def test_a_script_for_linux_is_one(tmp_path: Path) -> None:
    text = script_of(LINUX_ILL)
    assert text.startswith("#!/bin/sh\n# made by: qlora-run doctor --fix\n")
    assert "\r" not in text
    assert "python -m pip install --force-reinstall --no-deps bitsandbytes" in text.splitlines()
    assert "sudo timedatectl set-ntp true" in text.splitlines()
    if sys.platform != "win32":
        (tmp_path / "fix.sh").write_text(text, encoding="utf-8")
        assert subprocess.run(["sh", "-n", str(tmp_path / "fix.sh")], check=False).returncode == 0


def test_each_fix_stands_under_what_it_mends_and_only_once() -> None:
    lines = script_of(context(machine(), broke("adamw"), broke("varlen"))).splitlines()
    assert lines.count(TORCH_LINE) == 1
    assert [line.split(":")[0] for line in lines if line.startswith("# warn")] == [
        "# warn fused-adamw",
        "# warn varlen",
    ]


def test_what_only_a_person_can_do_is_a_comment() -> None:
    lines = script_of(context(machine(), broke("int8"))).splitlines()
    assert "# by hand: --method qlora-4" in lines
    assert not [line for line in lines if not line.startswith("#")]


def test_notes_are_not_mended() -> None:
    assert "nothing to mend" in script_of(context(machine("windows-12gb")))


def test_only_this_environment_is_changed_by_the_doctor_itself() -> None:
    ill = context(
        machine("windows-cpu-torch", packages={"peft": ""}),
        long_paths=False,
        longest_path=200,
        cache_problem="denied",
        file_encoding="ascii",
        clock_behind_seconds=9e6,
    )
    lines = script.safe_commands(run_checks(ill))
    assert len(lines) == 3
    assert all(line.startswith(("python -m pip install", "uv pip install")) for line in lines)


def test_commands_run_in_this_very_python() -> None:
    assert script.words_of("python -m pip install uv") == [sys.executable, "-m", "pip", "install", "uv"]
    words = script.words_of('uv pip install "torch>=2.11,<2.15" --torch-backend=cu126')
    assert words[:5] == [sys.executable, "-m", "uv", "pip", "install"]
    assert words[5] == "torch>=2.11,<2.15"
    assert words[-2:] == ["--python", sys.executable]


def test_applying_stops_at_the_first_that_fails() -> None:
    ran: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> int:
        ran.append(words)
        return int("uv" in words and "pip" in words)

    lines = ["python -m pip install one", "uv pip install two", "python -m pip install three"]
    assert script.apply(lines, run) == "uv pip install two"
    assert len(ran) == 2
    assert script.apply(lines[:1], run) is None


def examining(monkeypatch: pytest.MonkeyPatch, one: CheckContext) -> Examination:
    looked = examination_of(one)
    monkeypatch.setattr(examination, "examine", lambda asked, quick: looked)
    return looked


def test_fix_apply_runs_the_safe_lines_and_says_them(monkeypatch: pytest.MonkeyPatch, capsys: Caught) -> None:
    examining(monkeypatch, LINUX_ILL)
    ran: list[str] = []
    monkeypatch.setattr(script, "apply", lambda lines: ran.extend(lines))
    text = said(capsys, "doctor", "--fix", "--apply", code=3)
    assert ran == ["python -m pip install peft", "python -m pip install --force-reinstall --no-deps bitsandbytes"]
    assert text.splitlines() == [*ran, "Next: qlora-run doctor"]
    monkeypatch.setattr(script, "apply", lambda lines: lines[0])
    assert main(["doctor", "--fix", "--apply"]) == 3
    assert "this did not work: python -m pip install peft" in capsys.readouterr().err


def test_the_systems_own_python_is_left_alone(monkeypatch: pytest.MonkeyPatch, capsys: Caught, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    examining(monkeypatch, context(machine(packages={"peft": ""}), virtual=False))
    text = refused(capsys, "doctor", "--fix", "--apply")
    assert "virtual environments only" in text


def test_a_machine_without_problems_has_nothing_to_apply(monkeypatch: pytest.MonkeyPatch, capsys: Caught) -> None:
    examining(monkeypatch, context(machine()))
    text = said(capsys, "doctor", "--fix", "--apply")
    assert "nothing here can be mended without you" in text


def test_apply_refuses_before_anything_is_looked_at() -> None:
    from qlora_run.cli.parser import parse_command

    with pytest.raises(UserError, match="--apply runs what --fix prints"):
        command.run(parse_command(["doctor", "--apply"]))
    assert environment_of().virtual
