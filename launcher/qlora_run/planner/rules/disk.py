"""Whether what a run writes fits on the disk."""

from collections.abc import Callable
from typing import Any

from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.facts import ModelFacts
from qlora_profiles.units import MIB, in_gib

RECORDS_BYTES = 64 * MIB
"""Tokenizer, logs and records: a guess."""


def written_bytes(model: ModelFacts, trained_params: int, value: Callable[[str], Any]) -> int:
    """Bytes of the checkpoints kept (and the one being written), the result and the merged model."""
    state = 2 if value("optimizer") == "adamw-8bit" else 8
    kept: int = value("save_total_limit") + 1
    checkpoints = kept * trained_params * (4 + state)
    merged = model.params * 2 if value("merge") and value("method") != "full" else 0
    return checkpoints + trained_params * 4 + merged + RECORDS_BYTES


WAYS: dict[str, dict[str, Any]] = {
    "--save-total-limit 1": {"save_total_limit": 1},
    "--merge no": {"merge": False},
    "--merge no --save-total-limit 1": {"merge": False, "save_total_limit": 1},
}


def check_disk(free_bytes: int | None, model: ModelFacts, trained_params: int, value: Callable[[str], Any]) -> None:
    """Raises EnvironmentProblem when the output folder's disk is too small; names what would be small enough."""

    def needed(changed: dict[str, Any]) -> int:
        return written_bytes(model, trained_params, lambda name: changed[name] if name in changed else value(name))

    if free_bytes is None or needed({}) <= free_bytes:
        return
    enough = [way for way, changed in WAYS.items() if needed(changed) <= free_bytes][:1]
    raise EnvironmentProblem(
        f"not enough disk: the run writes {in_gib(needed({}))}, {in_gib(free_bytes)} are free",
        " or ".join([*enough, "--output on another disk"]),
    )
