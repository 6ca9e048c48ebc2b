"""The heaviest step before the first: what it computes, and that it leaves nothing behind."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.models import save_tiny_model, write_rows
from support.plans import plan

from qlora_core.backends.peft.backend import PeftBackend
from qlora_core.execution.limits import Limits
from qlora_core.execution.micro_batches import make_micro_batches
from qlora_core.memory import device_memory
from qlora_core.memory.checkpointed_layers import decoder_layers
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train import run as core_run
from qlora_core.train.execution import RunningExecution
from qlora_core.train.preflight import CAUSE, KEPT_BACK_BYTES, PHASE, ROUNDS, heaviest
from qlora_core.train.step import StepRunner
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EnvironmentProblem

LENGTHS = st.lists(st.integers(2, 400), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 1500), st.integers(1, 16))
def test_the_heaviest_rows_are_one_micro_batch(lengths: list[int], budget: int, most: int) -> None:
    rows = heaviest(lengths, budget, most)
    taken = [lengths[i] for i in rows]
    assert len(set(rows)) == len(rows) <= most
    assert len(make_micro_batches(taken, budget)) == 1
    assert max(taken) == max(lengths) or sum(taken) <= budget


@given(LENGTHS, st.integers(1, 1500))
def test_no_row_that_would_still_fit_is_left_out(lengths: list[int], budget: int) -> None:
    rows = heaviest(lengths, budget, len(lengths))
    used = sum(lengths[i] for i in rows)
    left = [length for i, length in enumerate(lengths) if i not in rows]
    assert used >= budget or all(used + length > budget for length in left)


class Answering(Control):
    """A launcher that answers in turn; it then has nothing more to say."""

    def __init__(self, *answers: Limits) -> None:
        super().__init__()
        self.left = list(answers)

    def answer(self, patience_seconds: float) -> str | None:
        return json.dumps(asdict(self.left.pop(0))) if self.left else None


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture
def trained(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Trains in this process, with or without the measuring, and returns the events."""

    def train(name: str, preflight: bool, stop: Control | None = None, **changes: Any) -> list[events.Event]:
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.setattr(core_run, "measured_first", lambda plan: preflight)
        log = EventLog(folder)
        made = plan(model=model, data=data, output=folder, steps=4, lora_dropout=0.1, **changes)
        assert core_run.run(made, log, Control() if stop is None else stop) == 0
        log.close()
        return events.all_events(folder / run_folder.EVENTS)

    return train


def losses(said: list[events.Event]) -> list[float]:
    return [e.loss for e in said if isinstance(e, events.StepEvent | events.EvalEvent)]


def test_nothing_is_trained_and_no_random_number_is_used_up(trained: Any) -> None:
    plain, measured = trained("plain", False, token_budget=64), trained("measured", True, token_budget=64)
    assert any(isinstance(e, events.PhaseEvent) and e.name == PHASE for e in measured)
    (found,) = [e for e in measured if isinstance(e, events.MeasuredEvent)]
    assert found.stage == "preflight"
    assert found.step_seconds is not None
    assert found.largest_tokens > 0
    assert found.several_micro_batches
    assert losses(measured) == losses(plain)


def test_what_is_measured_is_a_training_step(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers recompute only while training: else every execution would seem to need the same memory."""
    modes, run = [], RunningExecution.run

    def watched(self: RunningExecution, examples: Any) -> Any:
        modes.append(all(layer.training and layer.gradient_checkpointing for layer in decoder_layers(found[0])))
        return run(self, examples)

    found: list[Any] = []
    load = PeftBackend.load

    def loading(self: PeftBackend, *args: Any) -> Any:
        loaded = load(self, *args)
        found.append(loaded.model)
        return loaded

    monkeypatch.setattr(RunningExecution, "run", watched)
    monkeypatch.setattr(PeftBackend, "load", loading)
    trained("measured", True, layers_recomputed=3)
    assert len(modes) > 4
    assert all(modes)


def test_the_launchers_answer_is_taken_and_measured_again(trained: Any) -> None:
    plain = trained("plain", False)
    smaller = Limits(token_budget=64, layers_recomputed=2, loss_chunk_tokens=64)
    said = trained("answered", True, Answering(smaller, smaller))
    first, second = [e for e in said if isinstance(e, events.MeasuredEvent)]
    assert (first.limits["token_budget"], second.limits["token_budget"]) == (256, 64)
    assert second.largest_tokens < first.largest_tokens
    (change,) = [e for e in said if isinstance(e, events.AdaptationEvent)]
    assert change.cause == CAUSE
    assert change.after == {"token_budget": 64, "layers_recomputed": 2}
    assert losses(said)[0] == pytest.approx(losses(plain)[0], rel=1e-5)


@pytest.mark.parametrize("supervised", [True, False])
def test_a_run_does_not_grow_back_to_what_did_not_fit(
    trained: Any, monkeypatch: pytest.MonkeyPatch, supervised: bool
) -> None:
    """Also where the launcher answers with the very limits that measuring came down to, or nobody answers."""
    compute, seen = StepRunner.run, list[RunningExecution]()

    class Agreeing(Control):
        def answer(self, patience_seconds: float) -> str | None:
            return json.dumps(asdict(seen[0].limits)) if supervised else None

    def tight(self: StepRunner, examples: Any, loss: Any, token_budget: int, step: int) -> Any:
        if token_budget >= 256:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, examples, loss, token_budget, step)

    def begun(self: RunningExecution) -> None:
        seen.append(self)
        begin(self)

    begin = RunningExecution.begin
    monkeypatch.setattr(StepRunner, "run", tight)
    monkeypatch.setattr(RunningExecution, "begin", begun)
    said = trained("tight", True, Agreeing())
    changes = [e for e in said if isinstance(e, events.AdaptationEvent)]
    assert [e.cause for e in changes] == ["out of memory"]
    assert seen[-1].limits.token_budget < 256
    assert seen[-1].largest == seen[-1].limits


def test_a_launcher_that_never_agrees_is_heard_a_few_times_only(trained: Any) -> None:
    answers = [Limits(token_budget=64 + n, layers_recomputed=0, loss_chunk_tokens=64) for n in range(9)]
    said = trained("contrary", True, Answering(*answers))
    assert len([e for e in said if isinstance(e, events.MeasuredEvent)]) == ROUNDS


@pytest.mark.parametrize(
    ("held", "given_up"),
    [
        ({"cuda_graphs": True}, [{"cuda_graphs": False}]),
        ({"layers_dequantized": 2}, [{"layers_dequantized": 0}]),
        ({"cuda_graphs": True, "layers_dequantized": 2}, [{"layers_dequantized": 0}, {"cuda_graphs": False}]),
    ],
)
def test_an_optimizer_without_room_is_given_what_is_held(
    trained: Any, monkeypatch: pytest.MonkeyPatch, held: dict[str, Any], given_up: list[dict[str, Any]]
) -> None:
    """A CPU has no graphs, says so and computes as usual; but they are in the limits until they are given up."""
    plain = trained("plain", False)
    real, made = torch.zeros_like, 0

    def zeros_like(tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        nonlocal made
        made += "memory_format" in kwargs  # as AdamW makes its state
        if "memory_format" in kwargs and made <= 1 + len(given_up):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(tensor, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", zeros_like)
    said = trained("full", True, **held)
    changes = [e for e in said if isinstance(e, events.AdaptationEvent)]
    assert [change.after for change in changes] == given_up
    assert all("optimizer's step" in change.cause for change in changes)
    (measured,) = [e for e in said if isinstance(e, events.MeasuredEvent)]
    assert all(not measured.limits[name] for name in held)
    assert losses(said) == losses(plain)


def test_what_does_not_fit_with_memory_kept_back_is_tried_with_all_of_it(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, kept, run = trained("plain", False), list[int](), RunningExecution.run

    def tight(self: RunningExecution, examples: Any) -> Any:
        if held[0].kept_back_bytes:
            kept.append(held[0].kept_back_bytes)
            raise EnvironmentProblem("out of memory", "less")
        return run(self, examples)

    held: list[DeviceMemory] = []
    prepare = device_memory.prepare

    def prepared(plan: Any) -> DeviceMemory:
        held.append(prepare(plan))
        return held[0]

    monkeypatch.setattr(device_memory, "prepare", prepared)
    monkeypatch.setattr(RunningExecution, "run", tight)
    said = trained("tight", True)
    assert kept == [KEPT_BACK_BYTES]
    assert len([e for e in said if isinstance(e, events.MeasuredEvent)]) == 1
    assert losses(said) == losses(plain)


def test_words_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        stop = Control()
        stop.listen(supervised=True)
        os.write(write, b'go {"token')
        os.write(write, b'_budget": 7}\n')
        assert stop.answer(30) == '{"token_budget": 7}'
        assert not stop
        os.close(write)
        assert stop.answer(30) is None
        assert stop
    assert Control().answer(30) is None
