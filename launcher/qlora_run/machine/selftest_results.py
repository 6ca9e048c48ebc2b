"""What was tried on this machine with these very libraries, and whether it worked: kept in the user's cache folder.

The doctor tries and remembers; a plan asks. Results hold for one environment: the cards with their driver, Python,
and every package that matters. When one of them changes, nothing is known any more.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct, field

from qlora_profiles.hardware import HardwareReport
from qlora_profiles.machine_key import digest, machine_key
from qlora_profiles.machine_store import MachineStore

KIND = "selftest_results"

State = Literal["ok", "fail", "crashed", "hung", "unavailable", "skipped"]
BROKEN: tuple[State, ...] = ("fail", "crashed", "hung")
LONGEST_REASON = 60
"""Letters of an error that a plan repeats, set by hand; the doctor shows all of it."""


class Trial(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One operation tried in a child process. ``said`` is the error or the reason, ``found`` what it reported."""

    test: str
    state: State
    said: str = ""
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)


class SelftestResults(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known of an environment; without trials nothing is, and every rule decides as it would alone."""

    schema: Literal[1] = 1
    environment: str = ""
    time_s: float = 0.0
    trials: dict[str, Trial] = field(default_factory=dict)

    def works(self, test: str) -> bool:
        """Proven to work."""
        return test in self.trials and self.trials[test].state == "ok"

    def card_problem(self) -> str | None:
        """Why torch does not compute on the card that is there; ``None`` where it does, or nobody tried."""
        torch = self.trials.get("torch")
        if torch is not None and torch.state == "ok" and torch.found.get("device") == "cpu":
            return _in_short(str(torch.found.get("refused") or "torch sees no card"))
        return self.problem("device")

    def problem(self, *tests: str) -> str | None:
        """Why the first broken one of ``tests`` does not work, in a few words; ``None`` where none is known to fail."""
        broken = (self.trials[test] for test in tests if test in self.trials and self.trials[test].state in BROKEN)
        return next((_in_short(trial.said) for trial in broken), None)


def _in_short(said: str) -> str:
    return said if len(said) <= LONGEST_REASON else said[: LONGEST_REASON - 3].rstrip() + "..."


def load_results(report: HardwareReport, folder: Path | None = None) -> SelftestResults:
    """What was tried in this environment; nothing where it changed, was never tried, or cannot be read."""
    environment = environment_of(report)
    found = store(folder).read(environment).value
    return found if found and found.environment == environment else SelftestResults()


def remember(report: HardwareReport, trials: Mapping[str, Trial], folder: Path | None = None) -> Path | None:
    """Keep the results of trials; ``None`` where the cache cannot be written, which stops nobody."""
    environment = environment_of(report)
    value = SelftestResults(environment=environment, time_s=time.time(), trials=dict(trials))
    return store(folder).write(environment, value)


def store(folder: Path | None = None) -> MachineStore[SelftestResults]:
    """Where results lie, by environment."""
    return MachineStore(KIND, SelftestResults, folder)


def environment_of(report: HardwareReport) -> str:
    """A digest of everything that decides whether a library works here; the interpreter's place is part of it."""
    return digest(machine_key(report))
