"""The best adapter is put back, whatever became of it later."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tiny_model

from qlora_core.backends.peft.backend import add_adapters
from qlora_core.train.best_checkpoint import BestCheckpoint
from qlora_profiles import events, run_folder
from qlora_profiles.settings import Recipe


def adapted() -> Any:
    return add_adapters(tiny_model("qwen3"), Recipe(model="m", method="lora", max_length=64, lora_r=2))


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def learn(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.rand_like(parameter)


def test_the_lowest_loss_is_kept_and_put_back(tmp_path: Path) -> None:
    model, best = adapted(), BestCheckpoint(tmp_path, [])
    best.offer(model, 0, 0.1)  # the base is no candidate
    seen = {}
    for step, loss in ((2, 1.0), (4, 0.5), (6, 2.0)):
        learn(model)
        seen[step] = adapters(model)
        best.offer(model, step, loss)
    assert (best.step, best.loss) == (4, 0.5)
    assert best.restore(model, last_step=6)
    assert all(torch.equal(value, seen[4][name]) for name, value in adapters(model).items())
    assert not best.restore(model, last_step=4)


def test_a_resumed_run_knows_what_was_best(tmp_path: Path) -> None:
    past = [events.EvalEvent(time_s=1.0, step=step, loss=loss, rows=1) for step, loss in ((0, 0.1), (2, 0.7), (4, 0.9))]
    model = adapted()
    BestCheckpoint(tmp_path, []).offer(model, 2, 0.7)
    best = BestCheckpoint(tmp_path, past, 4)
    assert not best.lost
    best.offer(model, 6, 0.8)
    assert (best.step, best.loss) == (2, 0.7)
    best.offer(model, 8, 0.6)
    assert best.step == 8


@pytest.mark.parametrize("damage", ["gone", "zeroed", "record cut"])
def test_a_best_adapter_that_is_lost_is_told_and_never_taken(tmp_path: Path, damage: str) -> None:
    model, past = adapted(), [events.EvalEvent(time_s=1.0, step=2, loss=0.7, rows=1)]
    BestCheckpoint(tmp_path, []).offer(model, 2, 0.7)
    folder = tmp_path / run_folder.BEST_ADAPTER
    weights = folder / run_folder.ADAPTER_WEIGHTS
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "zeroed":
        weights.write_bytes(bytes(weights.stat().st_size))
    else:
        (folder / run_folder.DIGESTS).write_text("{", encoding="utf-8")
    said: list[str] = []
    best = BestCheckpoint(tmp_path, past, 2, said.append)
    assert best.lost
    assert [text.partition(" (")[0] for text in said] == ["the best adapter so far, of step 2, is lost"]
    assert not best.restore(model, last_step=6), "the last step's is kept, the same command ends"
    best.offer(model, 6, 0.8)
    assert (best.step, best.loss) == (6, 0.8), "worse than what is lost, and the best that there is"
    assert not BestCheckpoint(tmp_path, []).lost


def test_a_kill_while_the_best_is_written_loses_neither(tmp_path: Path) -> None:
    """Between two moments of a kill: the new one is not whole yet, or whole and not yet in its place."""
    model = adapted()
    BestCheckpoint(tmp_path, []).offer(model, 2, 0.7)
    past = [events.EvalEvent(time_s=1.0, step=step, loss=loss, rows=1) for step, loss in ((2, 0.7), (4, 0.5))]
    part = tmp_path / run_folder.BEST_ADAPTER_PART
    shutil.copytree(tmp_path / run_folder.BEST_ADAPTER, part)
    (part / run_folder.DIGESTS).unlink()
    best = BestCheckpoint(tmp_path, past, 2)
    assert (best.step, best.loss, best.lost) == (2, 0.7, False), "step 4 is measured once more"
    best.offer(model, 4, 0.5)
    shutil.move(tmp_path / run_folder.BEST_ADAPTER, part)
    best = BestCheckpoint(tmp_path, past, 2)
    assert (best.step, best.loss, best.lost) == (4, 0.5, False)
    assert not part.exists()
