"""A short campaign: damaged data files are read or refused in plain words, whatever was damaged."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import qlora_core.demo
from qlora_core.data.pipeline import read_facts
from qlora_profiles.errors import QloraRunError
from qlora_profiles.settings import Recipe, Run

BASE = str(Path(qlora_core.demo.__file__).parent / "base")
FILES = 300


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    yield import_module("campaign_data")
    sys.modules.pop("campaign_data", None)


def planned(path: Path) -> tuple[int, str]:
    """What a plan reads of the file: the exit code that it leads to, and what is shown."""
    skip = path.stat().st_size % 2 == 0
    recipe = Recipe(model=BASE, method="lora", data=(str(path),), max_length=128, skip_bad_rows=skip)
    try:
        facts = read_facts(recipe, Run(output=""))
    except QloraRunError as error:
        return error.exit_code, str(error)
    return 0, "\n".join((*facts.warnings, *facts.notes))


@pytest.mark.parametrize("seed", [3])
def test_damaged_files_never_break_the_reader(campaign: Any, tmp_path: Path, seed: int) -> None:
    files = campaign.damaged_files(FILES, seed, tmp_path)
    faults = [fault for path in files if (fault := campaign.fault_of(path, planned))]
    assert faults == []
