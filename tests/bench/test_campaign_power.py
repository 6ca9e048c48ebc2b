"""A run on a disk whose power fails loses at most the steps since its last checkpoint."""

import random
import sys
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def campaign_power(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    yield import_module("campaign_power")
    sys.modules.pop("campaign_power", None)


def test_a_power_loss_costs_the_steps_since_the_last_checkpoint(campaign_power: Any, tmp_path: Path) -> None:
    if why := campaign_power.can_mount():
        pytest.skip(why)
    with as_file(files("qlora_core").joinpath("demo")) as demo:
        lines = (demo / "data" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(lines[:60]), "utf-8")
        campaign = campaign_power.Campaign(tmp_path, demo / "base", rows, 8, 2, 0.1)
        found = campaign.lose_power(random.Random(3))
    assert found.held, found
