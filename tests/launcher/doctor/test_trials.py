"""Trials in child processes: a crash, a hang, an exit, garbage and silence are verdicts, and the next test goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.command_line import python_path
from support.doctor_contexts import machine, with_card

from qlora_core.selftest.registry import TESTS
from qlora_profiles.units import GIB
from qlora_run.doctor import trials
from qlora_run.doctor.trial_child import TrialPlan, _exit_text
from qlora_run.doctor.trials import TRIALS, _excused, try_all
from qlora_run.machine.selftest_results import Trial

CHILD = """
import json, os, signal, sys, time
from pathlib import Path
fate = json.loads(os.environ["FATE"])
with open(os.environ["STARTS"], "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
print("a library's greeting {")
for name in sys.argv[1:]:
    print(json.dumps({"began": name}), flush=True)
    what = fate.get(name, "ok")
    if what == "die":
        os._exit(3)
    if what == "crash":
        print("Fatal: out of luck", file=sys.stderr, flush=True)
        os.abort()
    if what == "hang":
        time.sleep(60)
    if what == "fail":
        print(json.dumps({"test": name, "state": "fail", "said": "no luck", "seconds": 0.1}), flush=True)
        continue
    print(json.dumps({"test": name, "state": "ok", "found": {"device": "cpu"}, "seconds": 0.1}), flush=True)
"""


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "child.py").write_text(CHILD, encoding="utf-8")
    monkeypatch.setenv("STARTS", str(tmp_path / "starts.txt"))
    return tmp_path / "starts.txt"


def tried(starts: Path, monkeypatch: pytest.MonkeyPatch, name: str = "windows-12gb", **fate: str) -> dict[str, str]:
    monkeypatch.setenv("FATE", json.dumps(fate))
    found = try_all(machine(name), (sys.executable, str(starts.with_name("child.py"))))
    assert list(found) == [plan.test for plan in TRIALS]
    return {test: f"{trial.state} {trial.said}".strip() for test, trial in found.items()}


def children(starts: Path) -> list[str]:
    return sorted(starts.read_text(encoding="utf-8").splitlines())


def test_the_trials_are_the_cores_tests() -> None:
    assert [plan.test for plan in TRIALS] == list(dict.fromkeys(plan.test for plan in TRIALS))
    assert {plan.test for plan in TRIALS} == TESTS.keys()


def test_what_needs_torch_shares_a_child(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried(starts, monkeypatch)
    assert children(starts) == ["torch device adamw nf4 int8 adam8bit varlen graphs workers"]
    assert found["nf4"] == "ok"
    assert found["triton"] == "skipped Triton is not installed"
    assert found["all_reduce"] == "skipped there is one card at most"


def test_a_failure_is_told_and_the_next_test_runs_in_the_same_child(
    starts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tried(starts, monkeypatch, nf4="fail")
    assert (found["nf4"], found["int8"]) == ("fail no luck", "ok")
    assert len(children(starts)) == 1


def test_a_crash_costs_one_test_and_the_others_get_a_new_child(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried(starts, monkeypatch, nf4="crash", varlen="die")
    if os.name == "posix":
        assert found["nf4"] == "crashed the process ended (signal 6): Fatal: out of luck"
    assert found["varlen"] == "crashed the process ended (exit 3): no message"
    assert all(found[test] == "ok" for test in ("torch", "device", "adamw", "int8", "adam8bit", "graphs", "workers"))
    assert children(starts) == [
        "graphs workers",
        "int8 adam8bit varlen graphs workers",
        "torch device adamw nf4 int8 adam8bit varlen graphs workers",
    ]


def test_a_hang_ends_and_is_told(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tuple(
        TrialPlan(test=p.test, child=p.child, limit_seconds=0.5 if p.test == "adamw" else 30, missing=p.missing)
        for p in TRIALS
    )
    monkeypatch.setattr(trials, "TRIALS", short)
    began = time.monotonic()
    found = tried(starts, monkeypatch, adamw="hang")
    assert time.monotonic() - began < 50
    assert found["adamw"] == "hung did not end within 0 s"
    assert found["workers"] == "ok"


def test_torch_that_does_not_import_is_one_thing_to_say(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried(starts, monkeypatch, torch="die")
    assert found.pop("torch").startswith("crashed")
    assert set(found.values()) == {"skipped torch does not import"}
    assert len(children(starts)) == 1
    everywhere = tried(starts, monkeypatch, "linux-12gb", torch="die", triton="fail", unsloth="die")
    assert everywhere.pop("torch").startswith("crashed")
    assert set(everywhere.values()) == {"skipped torch does not import"}


def test_a_full_card_proves_nothing(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = with_card(vram_free_bytes=GIB // 8)
    monkeypatch.setenv("FATE", json.dumps({"nf4": "crash", "varlen": "fail", "workers": "fail"}))
    found = try_all(full, (sys.executable, str(starts.with_name("child.py"))))
    assert {test for test, trial in found.items() if trial.state == "unavailable"} == {"nf4", "varlen"}
    assert found["varlen"].said == "the card has no free memory to try it in: no luck"
    assert found["workers"].state == "fail"
    refused = Trial(test="torch", state="ok", found={"device": "cpu", "refused": "CUDA error: out of memory"})
    assert _excused(full, {"torch": refused})["torch"].state == "unavailable"
    assert _excused(with_card(), {"torch": refused})["torch"] == refused


def test_a_command_that_cannot_be_started_is_a_verdict() -> None:
    found = try_all(machine("windows-12gb"), (str(Path("/no/such/python")),))
    assert found["torch"].state == "crashed"
    assert found["torch"].said.startswith("could not be started")


def test_nothing_is_started_without_torch(starts: Path) -> None:
    bare = machine(torch={"version": None, "build": None}, packages={"torch": ""})
    found = try_all(bare, (sys.executable, str(starts.with_name("child.py"))))
    assert {trial.said for trial in found.values()} == {"torch is not installed"}
    assert not starts.exists()


@pytest.mark.parametrize(("code", "words"), [(-11, "signal 11"), (1, "exit 1"), (0xC0000005, "0xC0000005")])
def test_exit_codes_as_people_look_them_up(code: int, words: str) -> None:
    assert _exit_text(code) == words


def test_each_environment_has_its_children() -> None:
    packages = {"triton": "3.7.0", "liger-kernel": "0.8.5", "unsloth": "2026.10.9"}
    report = machine("linux-2x24gb", packages=packages)
    tested = {plan.test for plan in TRIALS if plan.missing(report) is None}
    assert tested == set(TESTS)
    assert len({plan.child for plan in TRIALS}) == 4


INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
from qlora_profiles.machines import load_machine
from qlora_run.doctor.trials import try_all

def interrupt():
    while not Path(os.environ["STARTS"]).exists():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
threading.Thread(target=interrupt, daemon=True).start()
try:
    try_all(load_machine("linux-12gb"), (sys.executable, sys.argv[1]))
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot press Ctrl-C for itself there")
def test_an_interruption_ends_the_children(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them hangs for a minute, and a new one must not take its place."""
    fate = dict.fromkeys(("torch", "triton", "unsloth"), "hang")
    monkeypatch.setenv("FATE", json.dumps(fate))
    command = [sys.executable, "-c", INTERRUPTED, str(starts.with_name("child.py"))]
    env = {**os.environ, "PYTHONPATH": python_path()}
    done = subprocess.run(command, env=env, capture_output=True, timeout=45)
    assert done.stdout.decode().split() == ["stopped"], done.stderr
