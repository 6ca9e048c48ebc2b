"""Whole runs of tiny real models in 4 bits on the CPU, in child processes as the launcher starts them."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.models import save_tiny_model, write_rows
from support.plans import plan

from qlora_core.train import checkpoints
from qlora_profiles import codec, events, run_folder
from qlora_profiles.errors import EXIT_ENVIRONMENT, EnvironmentProblem


def test_memory_that_runs_out_before_the_first_step_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from qlora_core.train import run

    def no_room(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 96.00 MiB")

    monkeypatch.setattr(run, "_make_trainer", no_room)
    rest: Any = (None, None, None, tmp_path)
    with pytest.raises(EnvironmentProblem, match=r"out of memory while .* was loaded") as caught:
        run._trainer(plan(model=tmp_path, data=tmp_path, output=tmp_path), *rest)
    assert "smaller --model" in str(caught.value)
    assert caught.value.__context__ is None  # whose traceback would hold what takes the memory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


def start(folder: Path, **settings: Any) -> "subprocess.Popen[bytes]":
    folder.mkdir(parents=True, exist_ok=True)
    codec.save(plan(output=folder, **settings), folder / "plan.json")
    with (folder / "run.log").open("ab") as log:
        command = [sys.executable, "-m", "qlora_core", str(folder / "plan.json"), "--supervised"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)


def finish(folder: Path, **settings: Any) -> int:
    child = start(folder, **settings)
    code = child.wait(timeout=240)
    assert child.stdin is not None
    child.stdin.close()
    return code


def of(folder: Path, kind: type) -> list[Any]:
    return [e for e in events.all_events(folder / run_folder.EVENTS) if isinstance(e, kind)]


def losses(folder: Path) -> dict[int, float]:
    return {e.step: e.loss for e in of(folder, events.StepEvent)}


def wait_for_step(folder: Path, child: "subprocess.Popen[bytes]", step: int) -> None:
    deadline = time.monotonic() + 120
    while not any(e.step >= step for e in of(folder, events.StepEvent)):
        assert child.poll() is None, (folder / "run.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, model: Path, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    code = finish(folder, model=model, data=data, steps=12)
    assert code == 0, (folder / "run.log").read_text(encoding="utf-8")
    return folder


def test_a_run_writes_its_events_and_artifacts(undisturbed: Path) -> None:
    steps = of(undisturbed, events.StepEvent)
    assert [e.step for e in steps] == list(range(1, 13))
    assert all(e.supervised_tokens > 0 and e.tokens > e.supervised_tokens and e.grad_norm > 0 for e in steps)
    assert steps[-1].loss < steps[0].loss
    first, *_, last = of(undisturbed, events.EvalEvent)
    assert (first.step, last.step, len(last.row_losses)) == (0, 12, 2)
    assert last.loss < first.loss
    (done,) = of(undisturbed, events.DoneEvent)
    assert (done.status, done.exit_code) == ("finished", 0)
    for name in ("lora_adapter/adapter_model.safetensors", "lora_adapter/tokenizer.json", "training_config.json"):
        assert (undisturbed / name).is_file()
    config = json.loads((undisturbed / "training_config.json").read_text(encoding="utf-8"))
    assert config["recipe"]["lora_r"] == 4


def test_everything_in_the_folder_has_a_known_name(undisturbed: Path) -> None:
    assert [path.name for path in undisturbed.iterdir() if not run_folder.is_ours(path.name)] == []
    assert any(run_folder.checkpoint_step(path) == 12 for path in run_folder.checkpoints(undisturbed))


def test_losses_keep_full_precision(undisturbed: Path) -> None:
    assert any(len(repr(loss)) > 12 for loss in losses(undisturbed).values())


def test_half_the_token_budget_learns_the_same(undisturbed: Path, tmp_path: Path, model: Path, data: Path) -> None:
    assert finish(tmp_path / "half", model=model, data=data, steps=12, token_budget=64, layers_recomputed=2) == 0
    assert losses(tmp_path / "half") == pytest.approx(losses(undisturbed), rel=1e-4)
    cuts = [e.micro_batches for e in of(tmp_path / "half", events.StepEvent)]
    assert max(cuts) > max(e.micro_batches for e in of(undisturbed, events.StepEvent))


def test_a_killed_run_goes_on_with_the_same_losses(undisturbed: Path, tmp_path: Path, model: Path, data: Path) -> None:
    folder = tmp_path / "killed"
    child = start(folder, model=model, data=data, steps=12)
    wait_for_step(folder, child, 5)
    child.kill()
    child.communicate()
    assert (newest := checkpoints.newest(folder)) is not None
    assert finish(folder, model=model, data=data, steps=12) == 0
    runs = of(folder, events.RunEvent)
    assert runs[1].resumed_from is not None
    assert runs[1].first_step == run_folder.checkpoint_step(newest) + 1 > 1
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_asked_to_stop_it_saves_first(undisturbed: Path, tmp_path: Path, model: Path, data: Path) -> None:
    folder = tmp_path / "stopped"
    child = start(folder, model=model, data=data, steps=12, save_steps=100)
    wait_for_step(folder, child, 2)
    assert child.stdin is not None
    child.stdin.write(b"stop\n")
    child.stdin.close()
    assert child.wait(timeout=120) == 130
    stopped = of(folder, events.DoneEvent)[-1]
    assert stopped.status == "interrupted"
    assert run_folder.checkpoint_step(checkpoints.newest(folder) or Path()) == stopped.step
    assert finish(folder, model=model, data=data, steps=12, save_steps=100) == 0
    assert losses(folder) == pytest.approx(losses(undisturbed), rel=1e-5)


def test_a_half_written_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    checkpoints.mark_complete(tmp_path / "checkpoint-2", 2, "r")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("method", ["lora", "full", "qlora-8"])
def test_every_method_trains(method: str, tmp_path: Path, model: Path, data: Path) -> None:
    folder = tmp_path / method
    rate = 1e-3 if method == "full" else 1e-2
    code = finish(folder, model=model, data=data, steps=6, method=method, learning_rate=rate)
    assert code == 0, (folder / "run.log").read_text(encoding="utf-8")
    first, *_, last = of(folder, events.EvalEvent)
    assert last.loss < first.loss


def test_dropout_is_on_from_the_first_step_in_every_start(tmp_path: Path, model: Path, data: Path) -> None:
    """Without held-out rows nobody measures before the first step, and after a kill nobody does again."""
    alone: dict[str, Any] = {"model": model, "data": data, "steps": 4, "method": "lora", "val_size": 0.0}
    alone |= {"learning_rate": 0.5, "warmup_steps": 0.0}
    found: dict[float, dict[int, float]] = {}
    for dropout in (0.0, 0.5):
        assert finish(tmp_path / str(dropout), **alone, lora_dropout=dropout) == 0
        found[dropout] = losses(tmp_path / str(dropout))
    assert found[0.5][2] != pytest.approx(found[0.0][2], rel=1e-3)  # in the first step adapters add nothing yet
    folder = tmp_path / "killed"
    child = start(folder, **alone, lora_dropout=0.5)
    wait_for_step(folder, child, 3)
    child.kill()
    child.communicate()
    assert finish(folder, **alone, lora_dropout=0.5) == 0
    assert losses(folder) == pytest.approx(found[0.5], rel=1e-5)


@pytest.mark.parametrize("length", [{"steps": 4}, {"max_steps": None, "epochs": 0.3}])
def test_a_run_that_ended_before_its_adapter_was_written_takes_no_step_more(
    length: dict[str, Any], tmp_path: Path, model: Path, data: Path
) -> None:
    settings = {"model": model, "data": data, "method": "lora", **length}
    assert finish(tmp_path, **settings) == 0
    trained = losses(tmp_path)
    adapter = tmp_path / "lora_adapter" / "adapter_model.safetensors"
    before = adapter.read_bytes()
    shutil.rmtree(adapter.parent)
    assert finish(tmp_path, **settings) == 0
    assert losses(tmp_path) == trained
    assert adapter.read_bytes() == before
    assert [e.status for e in of(tmp_path, events.DoneEvent)] == ["finished"] * 2


def test_a_changed_data_file_is_refused(tmp_path: Path, model: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl")
    folder = tmp_path / "out"
    folder.mkdir()
    codec.save(plan(model, data, folder), folder / "plan.json")
    write_rows(data, offset=5)
    assert (
        subprocess.run([sys.executable, "-m", "qlora_core", str(folder / "plan.json")], capture_output=True).returncode
        == 2
    )
    assert "changed since" in (of(folder, events.DoneEvent)[-1].message or "")


def test_the_adapter_of_the_best_step_is_what_a_run_keeps(tmp_path: Path, model: Path, data: Path) -> None:
    from safetensors.torch import load_file

    folder = tmp_path / "wild"
    settings: dict[str, Any] = {"steps": 8, "eval_steps": 2, "learning_rate": 10.0, "warmup_steps": 8}
    assert finish(folder, model=model, data=data, save_total_limit=9, **settings) == 0
    found = {e.step: e.loss for e in of(folder, events.EvalEvent) if e.step > 0}
    best = min(found, key=lambda step: found[step])
    kept = load_file(folder / "lora_adapter" / "adapter_model.safetensors")
    for step in found:
        other = load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors")
        assert all(kept[name].equal(other[name]) for name in kept) == (step == best)
    said = any(f"step {best} is kept" in e.message for e in of(folder, events.WarningEvent))
    assert said == (best != 8)


DISTURBED = """
import os, pathlib, sys, time
if "qlora_core.jobs.read_back" in sys.orig_argv:
    class Told:
        def readline(self, told=sys.stdin):
            line = told.readline()
            if os.environ["DISTURB"] == "wait":
                time.sleep(10)
                os._exit(1)
            template = pathlib.Path(line.strip()).parent / "lora_adapter" / "chat_template.jinja"
            template.write_text(template.read_text().replace("assistant", "model"))
            return line
    sys.stdin = Told()
"""


def test_a_saved_folder_that_is_not_what_was_trained_fails_the_run_and_nothing_is_lost(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it is checked, then damaged, then left alone: by the same command, and no step more."""
    (tmp_path / "sitecustomize.py").write_text(DISTURBED, encoding="utf-8")
    folder = tmp_path / "run"
    settings: dict[str, Any] = {"model": model, "data": data, "method": "lora", "steps": 2, "read_back": True}
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
        patch.setenv("DISTURB", "wait")
        child = start(folder, **settings)
        deadline = time.monotonic() + 120
        while not any(e.name == "reading back what was saved" for e in of(folder, events.PhaseEvent)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.kill()
        child.communicate()
        assert of(folder, events.DoneEvent) == of(folder, events.ReadBackEvent) == []
        patch.setenv("DISTURB", "damage")
        assert finish(folder, **settings) == EXIT_ENVIRONMENT
    (done,) = of(folder, events.DoneEvent)
    assert done.status == "failed"
    assert "lora_adapter: 20 of 20 rows render another text" in done.message
    assert (folder / "lora_adapter" / "adapter_model.safetensors").is_file()
    assert finish(folder, **settings, merge=True) == 0
    found = of(folder, events.ReadBackEvent)[-1].found
    assert (found.state, found.rows, found.logits, found.unchecked) == ("same", 20, True, ())
    assert found.folders == ("lora_adapter", "final_model")
    assert [e.step for e in of(folder, events.StepEvent)] == [1, 2]
    assert [path.name for path in folder.iterdir() if not run_folder.is_ours(path.name)] == []


def test_a_run_that_is_not_checked_says_so(undisturbed: Path) -> None:
    (event,) = of(undisturbed, events.ReadBackEvent)
    assert (event.found.state, event.found.words) == ("unchecked", "not checked: --read-back false")
