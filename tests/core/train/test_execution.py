"""What runs has one owner: after any number of changes the events, the closing event and the settings' file say it."""

import json
import random
import shutil
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from support.executions import running
from support.models import random_examples, save_tiny_model, tiny_model, write_rows
from support.plans import plan

from qlora_core import __main__ as core_main
from qlora_core.backends.packed_loss import PackedLoss
from qlora_core.execution.limits import Limits
from qlora_core.memory.device_memory import DeviceMemory
from qlora_core.memory.oom_retry import beside_a_step, retry_after_freeing, retry_on_oom
from qlora_core.memory.pressure_monitor import PATIENCE_STEPS, RETRY_STEPS
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train.execution import EVALUATION_BUDGET, RunningExecution
from qlora_core.train.step import StepResult
from qlora_profiles import events, run_folder
from qlora_profiles.errors import EXIT_INTERRUPTED, EnvironmentProblem
from qlora_profiles.plan import RunPlan
from qlora_run.report.lines import adaptation_line
from qlora_run.report.run_state import fold

CPU = torch.device("cpu")
FULL = "CUDA out of memory. Tried to allocate 96.00 MiB"
STEPS = 6


@dataclass
class Card:
    """A card that takes micro-batches of so many tokens, by turns; and what happened on it.

    ``step_room`` and ``row_room`` say for a try how many tokens have room in training and for held-out rows.
    """

    step_room: Callable[[], float] = lambda: float("inf")
    row_room: Callable[[], float] = lambda: float("inf")
    refused: list[str] = field(default_factory=list)
    made: list[RunningExecution] = field(default_factory=list)

    @property
    def execution(self) -> RunningExecution:
        return self.made[-1]

    def take(self, kind: str, room: Callable[[], float], tokens: int) -> None:
        if tokens > room():
            self.refused.append(kind)
            raise torch.OutOfMemoryError(FULL)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card, loss_sum, score_rows = Card(), PackedLoss.__call__, PackedLoss.token_losses
    begin = RunningExecution.__init__

    def step(self: PackedLoss, packed: Any) -> torch.Tensor:
        card.take("step", card.step_room, packed.num_tokens)
        return loss_sum(self, packed)

    def rows(self: PackedLoss, packed: Any) -> torch.Tensor:
        card.take("rows", card.row_room, packed.num_tokens)
        return score_rows(self, packed)

    def known(self: RunningExecution, **arguments: Any) -> None:
        begin(self, **arguments)
        card.made.append(self)

    monkeypatch.setattr(PackedLoss, "__call__", step)
    monkeypatch.setattr(PackedLoss, "token_losses", rows)
    monkeypatch.setattr(RunningExecution, "__init__", known)
    return card


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", 40)


@pytest.fixture
def planned(model: Path, data: Path, tmp_path: Path) -> RunPlan:
    return plan(model=model, data=data, output=tmp_path, steps=STEPS, val_size=6.0)


def trained(planned: RunPlan, stop: Control | None = None) -> tuple[int, list[events.Event]]:
    """The exit code and the events of a run in this process."""
    output = Path(planned.run_values().output)
    log = EventLog(output)
    try:
        code = core_main._run(planned, log, Control() if stop is None else stop, False)
    finally:
        log.close()
    return code, events.all_events(output / run_folder.EVENTS)


def of(said: list[events.Event], kind: Any) -> list[Any]:
    return [event for event in said if isinstance(event, kind)]


def first_tries_fail(count: int) -> Callable[[], float]:
    left = [0.0] * count
    return lambda: left.pop() if left else float("inf")


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_what_ran_at_the_end_is_written_down(planned: RunPlan, card: Card, count: int) -> None:
    card.step_room = first_tries_fail(count)
    code, said = trained(planned)
    assert code == 0
    assert len(card.refused) == len(of(said, events.AdaptationEvent)) == count
    ran = card.execution.values()
    assert (ran != asdict(Limits.of(planned.execution_values()))) == (count > 0)
    (done,) = of(said, events.DoneEvent)
    assert done.limits == ran
    config = json.loads((Path(planned.run_values().output) / "training_config.json").read_text(encoding="utf-8"))
    values = {name: resolved.value for name, resolved in planned.execution.items()}
    assert config["execution"] == json.loads(json.dumps(values))
    assert config["execution_at_end"] == config["execution"] | ran


def test_a_stopped_run_says_what_ran(planned: RunPlan, card: Card) -> None:
    stop = Control()
    card.step_room = first_tries_fail(2)
    write = EventLog.write

    def stopping(self: EventLog, kind: Any, **fields: Any) -> None:
        write(self, kind, **fields)
        if kind is events.StepEvent and fields["step"] == 2:
            stop.set()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(EventLog, "write", stopping)
        code, said = trained(planned, stop)
    (done,) = of(said, events.DoneEvent)
    assert (code, done.status, done.step) == (EXIT_INTERRUPTED, "interrupted", 3)
    assert done.limits == card.execution.values() != asdict(Limits.of(planned.execution_values()))


def test_a_failed_run_says_what_ran(planned: RunPlan, card: Card) -> None:
    card.step_room = lambda: 0.0
    _, said = trained(planned)
    (done,) = of(said, events.DoneEvent)
    assert done.status == "failed"
    assert "--max-length" in (done.fix or "")
    assert done.limits == card.execution.values()
    assert done.limits["layers_recomputed"] == planned.model.num_layers


def test_a_run_that_failed_before_there_was_a_model_says_nothing_of_it(planned: RunPlan) -> None:
    (source,) = planned.data.sources
    other = msgspec.structs.replace(source, fingerprint="of another file")
    data = msgspec.structs.replace(planned.data, sources=(other,))
    code, said = trained(msgspec.structs.replace(planned, data=data))
    (done,) = of(said, events.DoneEvent)
    assert (code, done.status, done.limits) == (2, "failed", {})


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_events_tell_at_any_moment_what_runs(
    planned: RunPlan, card: Card, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory at random in steps and held-out rows, and grown back after quiet steps in between."""
    draw = random.Random(seed)
    card.step_room = card.row_room = lambda: draw.choice([70.0, 120.0, 1e9, 1e9, 1e9])  # the longest row has room
    told = asdict(Limits.of(planned.execution_values()))
    said: list[events.Event] = []
    write = EventLog.write

    def checked(self: EventLog, kind: Any, **fields: Any) -> None:
        write(self, kind, **fields)
        said.append(kind(time_s=float(len(said)), **fields))
        if kind is events.AdaptationEvent:
            was = {EVALUATION_BUDGET: told["token_budget"]} | told
            assert fields["before"] == {name: was[name] for name in fields["after"]}
            assert all(value != was[name] for name, value in fields["after"].items())
            told.update(fields["after"])
        if card.made:
            card.execution._pressure.patience = 1
            assert card.execution.values() == told
            assert asdict(Limits.of(planned.execution_values())) | fold(said).limits == told

    monkeypatch.setattr(EventLog, "write", checked)
    assert trained(planned)[0] == 0
    causes = {e.cause for e in of(said, events.AdaptationEvent)}
    assert {"out of memory", "it had been quiet for a while"} <= causes


def test_held_out_rows_without_room_are_cut_smaller_once(planned: RunPlan, card: Card) -> None:
    _, plain = trained(planned)
    shutil.rmtree(planned.run_values().output)
    Path(planned.run_values().output).mkdir()
    card.row_room = lambda: 70.0
    code, said = trained(planned)
    assert code == 0
    evals = of(said, events.EvalEvent)
    assert len(evals) > 2
    changes = of(said, events.AdaptationEvent)
    assert len(card.refused) == len(changes) > 0
    assert all(said.index(change) < said.index(evals[0]) for change in changes)  # the later ones begin there
    assert card.execution.limits == Limits.of(planned.execution_values())  # steps have the room that they had
    assert of(said, events.DoneEvent)[0].limits[EVALUATION_BUDGET] == changes[-1].after[EVALUATION_BUDGET] <= 70
    assert "redone" not in adaptation_line(changes[0])
    for got, expected in zip(evals, of(plain, events.EvalEvent), strict=True):
        assert got.row_losses == pytest.approx(expected.row_losses, rel=1e-4)


def test_a_held_out_row_without_room_is_one_line(planned: RunPlan, card: Card) -> None:
    card.row_room = lambda: 0.0
    code, said = trained(planned)
    (done,) = of(said, events.DoneEvent)
    assert (code, done.fix) == (3, "--val-size 0")
    assert done.limits == card.execution.values()


class Held:
    """Something large that a try makes."""


def test_what_a_try_held_is_gone_when_room_is_made() -> None:
    tries: list[weakref.ref[Held]] = []

    def work() -> str:
        held = Held()
        tries.append(weakref.ref(held))
        if len(tries) < 3:
            raise torch.OutOfMemoryError(FULL)
        return "done"

    def free_memory() -> bool:
        assert tries[-1]() is None
        return True

    assert retry_on_oom(work, CPU, free_memory, beside_a_step("less")) == "done"
    tries.clear()
    assert retry_after_freeing(work, CPU, free_memory, "less") == "done"


def test_room_is_made_until_there_is_none() -> None:
    left = [True, True, False]

    def never() -> None:
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(EnvironmentProblem, match="CUDA out of memory") as caught:
        retry_on_oom(never, CPU, lambda: left.pop(0), beside_a_step("less"))
    assert left == []
    assert caught.value.fix == "less"
    assert caught.value.__context__ is None  # whose traceback would hold what takes the memory


class Pressed(DeviceMemory):
    """Memory in which the allocator gave something back before each of the first steps."""

    left = RETRY_STEPS

    def pressure(self) -> tuple[int, float]:
        self.left -= 1
        return int(self.left >= 0), 1.0


def test_pressure_shrinks_and_quiet_steps_grow_back_as_far_as_is_allowed() -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(tiny_model("qwen3"), LoraConfig(r=4, target_modules="all-linear"))
    told: list[events.AdaptationEvent] = []
    execution = running(
        adapted, Limits(token_budget=256, layers_recomputed=0), lambda packed: packed.targets, told, Pressed(device=CPU)
    )
    execution.start_from("measured", Limits(token_budget=128, layers_recomputed=0))
    execution.begin()
    lengths = tuple(len(e.input_ids) for e in random_examples(8, longest=60))
    step = StepResult(
        loss=torch.zeros(()),
        supervised_tokens=1,
        tokens=sum(lengths),
        examples=8,
        micro_batches=2,
        largest_tokens=100,
        lengths=lengths,
    )
    for _ in range(RETRY_STEPS + 3 * PATIENCE_STEPS):
        execution.after_step(step, 1.0)
    assert [e.cause for e in told] == [
        "measured",
        "the allocator kept running into the limit",
        "it had been quiet for a while",
    ]
    assert told[1].after["token_budget"] < 128
    assert execution.limits == execution.largest == Limits(token_budget=128, layers_recomputed=0)
    assert execution.stats.adapted
