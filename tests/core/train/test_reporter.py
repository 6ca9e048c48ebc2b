"""What is said after each step, at once or while the next step is computed; and answers that find no room."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import save_tiny_model, write_rows
from support.plans import plan

from qlora_core.backends.packed_loss import PackedLoss
from qlora_core.inference import generate
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train import reporter
from qlora_core.train import run as core_run
from qlora_core.train.best_checkpoint import BestCheckpoint
from qlora_core.train.trainer import StepTrainer
from qlora_profiles import events, run_folder
from qlora_profiles.errors import UserError

STEPS = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def trained(model: Path, folder: Path, **changes: Any) -> list[events.Event]:
    """The events of a run in this process, with three evaluations and four checkpoints."""
    folder.mkdir()
    data = write_rows(folder / "rows.jsonl", 40)
    log = EventLog(folder)
    try:
        core_run.run(plan(model=model, data=data, output=folder, steps=STEPS, **changes), log, Control())
    finally:
        log.close()
    return events.all_events(folder / run_folder.EVENTS)


def ahead(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(reporter, "AHEAD", {"cpu": steps})


def of(said: list[events.Event], kind: Any) -> list[Any]:
    return [event for event in said if isinstance(event, kind)]


@pytest.mark.parametrize("steps", [1, 3])
def test_looking_at_steps_later_changes_nothing_but_when(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    plain = trained(model, tmp_path / "plain")
    ahead(monkeypatch, steps)
    late = trained(model, tmp_path / "late")
    for name in ("step", "loss", "learning_rate", "grad_norm", "tokens", "examples", "micro_batches", "epoch"):
        expected = [getattr(e, name) for e in of(plain, events.StepEvent)]
        assert [getattr(e, name) for e in of(late, events.StepEvent)] == expected, name
    assert [e.step for e in of(late, events.StepEvent)] == list(range(1, STEPS + 1))
    assert [e.loss for e in of(late, events.EvalEvent)] == [e.loss for e in of(plain, events.EvalEvent)]
    order = [(type(e).__name__, e.step) for e in late if isinstance(e, events.StepEvent | events.CheckpointEvent)]
    for kind, step in order:  # a checkpoint is of steps that were looked at
        if kind == "CheckpointEvent":
            assert order.index(("StepEvent", step)) < order.index((kind, step))
    assert sum(kind == "CheckpointEvent" for kind, _ in order) > 2


def test_seconds_of_steps_behind_one_another_do_not_overlap(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead(monkeypatch, 1)
    said = of(trained(model, tmp_path / "late", save_steps=1000, eval_steps=1000), events.StepEvent)
    taken = sum(e.step_seconds for e in said[1:])
    assert all(e.step_seconds > 0 for e in said)
    assert taken <= said[-1].time_s - said[0].time_s + said[0].step_seconds + said[1].step_seconds


@pytest.mark.parametrize("steps", [0, 1])
def test_a_loss_that_is_no_number_ends_the_run_and_names_its_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    ahead(monkeypatch, steps)
    own, computed = PackedLoss.__call__, 0

    def failing(self: PackedLoss, packed: Any) -> torch.Tensor:
        nonlocal computed
        computed += torch.is_grad_enabled()
        return own(self, packed) * (float("nan") if computed == 4 else 1.0)

    monkeypatch.setattr(PackedLoss, "__call__", failing)
    with pytest.raises(UserError, match=r"step 4: the loss is nan") as caught:
        trained(model, tmp_path / "nan", save_steps=1000, eval_steps=1000, token_budget=4096)
    assert caught.value.fix is not None
    assert "--learning-rate" in caught.value.fix
    said = events.all_events(tmp_path / "nan" / run_folder.EVENTS)
    assert [e.step for e in of(said, events.StepEvent)] == [1, 2, 3]


def test_an_answer_that_finds_room_at_the_second_try(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(model, tmp_path / "plain", sample_prompts=("hello",))
    real, tried = generate.generate, 0

    def once(*args: Any, **kwargs: Any) -> str:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(generate, "generate", once)
    said = trained(model, tmp_path / "tight", sample_prompts=("hello",))
    assert [e.samples for e in of(said, events.SampleEvent)] == [e.samples for e in of(plain, events.SampleEvent)]
    assert tried == 3


def test_answers_that_never_find_room_do_not_end_a_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **kwargs: Any) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generate, "generate", never)
    said = trained(model, tmp_path / "full", sample_prompts=("hello",))
    assert of(said, events.SampleEvent) == []
    assert sum("not answered" in e.message for e in of(said, events.WarningEvent)) == 2
    (done,) = of(said, events.DoneEvent)
    assert (done.status, done.step) == ("finished", STEPS)


def test_what_is_trained_stays_at_its_place_in_memory(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA graphs read it there: going on from a checkpoint and taking the best adapter must write into it."""
    folder = tmp_path / "resumed"
    trained(model, folder)
    first, *later = sorted(folder.glob("checkpoint-*"))
    assert later
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    places: list[list[int]] = []
    train = StepTrainer.train

    def watched(self: StepTrainer, *args: Any, **kwargs: Any) -> Any:
        assert kwargs["resume_from_checkpoint"] == str(first)
        parameters = [p for p in self.job.loaded.model.parameters() if p.requires_grad]
        places.append([p.data_ptr() for p in parameters])
        done = train(self, *args, **kwargs)
        places.append([p.data_ptr() for p in parameters])
        best = BestCheckpoint(folder, events.all_events(folder / run_folder.EVENTS))
        best.step = 3
        assert best.restore(self.model, STEPS)
        places.append([p.data_ptr() for p in self.job.loaded.model.parameters() if p.requires_grad])
        return done

    monkeypatch.setattr(StepTrainer, "train", watched)
    log = EventLog(folder)
    made = plan(model=model, data=folder / "rows.jsonl", output=folder, steps=STEPS)
    assert core_run.run(made, log, Control()) == 0
    log.close()
    assert len(places) == 3
    assert places[0] == places[1] == places[2]
