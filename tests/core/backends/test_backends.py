"""The protocol is enough for a backend that shares nothing of our step's forward."""

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from support.models import save_tiny_model, write_rows
from support.plans import plan

from qlora_core import backends
from qlora_core.session.control import Control
from qlora_core.session.event_log import EventLog
from qlora_core.train.run import run
from qlora_profiles import events, run_folder
from qlora_profiles.errors import UserError
from qlora_profiles.settings import BACKEND_GROUP

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second backend, as if its package were installed."""
    entry = EntryPoint("separate", "support.second_backend:SeparateBackend", BACKEND_GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [entry] if group == BACKEND_GROUP else [])


def train(folder: Path, model: Path, data: Path, **settings: Any) -> list[Any]:
    folder.mkdir()
    log = EventLog(folder)
    assert run(plan(model, data, folder, steps=4, **settings), log, Control()) == 0
    log.close()
    return events.all_events(folder / run_folder.EVENTS)


def test_two_backends_give_the_same_losses(installed: None, tmp_path: Path) -> None:
    model, data = save_tiny_model(tmp_path / "model"), write_rows(tmp_path / "rows.jsonl")
    ours = train(tmp_path / "peft", model, data)
    theirs = train(tmp_path / "separate", model, data, backend="separate")
    for kind in (events.StepEvent, events.EvalEvent):
        expected = [e.loss for e in ours if isinstance(e, kind)]
        assert [e.loss for e in theirs if isinstance(e, kind)] == pytest.approx(expected, rel=1e-4)
        assert len(expected) > 1
    assert [e.message for e in theirs if isinstance(e, events.WarningEvent)] == ["this is the separate backend"]


def test_an_unknown_backend_names_those_that_exist(installed: None) -> None:
    with pytest.raises(UserError, match="there is peft, unsloth, separate; did you mean separate"):
        backends.create("seperate")


def test_nothing_is_imported_before_it_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("broken", "no_such_module:Backend", BACKEND_GROUP)
    monkeypatch.setattr(backends, "entry_points", lambda group: [entry])
    assert "broken" in backends.available()
