"""The doctor's trials on a real card: what is installed works, or says in one line why not."""

import pytest
import torch
from support.command_line import python_path

from qlora_run.doctor.check_context import CheckContext
from qlora_run.doctor.trials import TRIALS, try_all
from qlora_run.machine.selftest_results import BROKEN
from qlora_run.probe import probe

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]


def test_every_trial_that_has_what_it_needs_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", python_path())  # for the children, where the project is not installed
    report = probe()
    trials = try_all(report)
    needed = [plan.test for plan in TRIALS if plan.missing(report) is None]
    assert {"torch", "device", "adamw", "nf4", "int8", "adam8bit", "varlen", "graphs", "workers"} <= set(needed)
    assert {test: trials[test].said for test in needed if trials[test].state in BROKEN} == {}
    made = CheckContext(report=report, trials=trials)
    assert made.found("nf4", "device") == "cuda"
    assert made.found("torch", "architectures")
