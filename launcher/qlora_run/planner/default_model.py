"""The model for a person who named none."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from qlora_profiles.errors import QloraRunError
from qlora_profiles.facts import DataFacts
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.plan import Given, Request, RunPlan
from qlora_profiles.settings import FIRST_CARD
from qlora_profiles.units import human_seconds, in_gib
from qlora_run.machine.measurements.records import Calibration
from qlora_run.machine.selftest_results import SelftestResults
from qlora_run.model_facts import known_facts
from qlora_run.planner.resolve import resolve

BY_SIZE = (
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-14B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-4B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-0.6B",
)
MOST_SECONDS = 12 * 3600
"""A night: started in the evening, there in the morning."""
SLOWEST_TOKENS_PER_SECOND = 100
"""Below this even a first look at the loss takes an hour: no size is worth that on small data either."""
DISK_SHARE = 0.9
"""Of the free disk that a download may fill: set by hand."""


class Pick(NamedTuple):
    """A model and why it."""

    name: str
    reason: str


def default_model(
    report: HardwareReport,
    data: DataFacts | None = None,
    calibration: Calibration | None = None,
    selftest_results: SelftestResults | None = None,
    devices: tuple[int, ...] = FIRST_CARD,
) -> Pick:
    """The largest Qwen3 that this machine trains on this data within a night; the smallest where none does.

    Without ``data``, on a thousand usual instruction rows.
    """
    data = data or _usual_rows()
    why_not = ""
    for name in BY_SIZE:
        planned = partial(_plan, report, name, data, calibration, selftest_results, **_chosen(devices))
        plan = planned()
        hindrance = _hindrance(report, name, plan) or _offloaded(plan, planned)
        if plan is not None and hindrance is None:
            return Pick(name, f"the largest Qwen3 that trains here in a night: {_about(plan)}{why_not}")
        why_not = f"; {_short(name)} {hindrance}"
    return Pick(BY_SIZE[-1], f"the smallest Qwen3; even it {why_not.split(maxsplit=2)[-1]}")


def _chosen(devices: tuple[int, ...]) -> dict[str, Any]:
    """The cards asked for as a setting, where they are not the usual ones."""
    return {} if devices == FIRST_CARD else {"devices": devices}


def _usual_rows() -> DataFacts:
    from qlora_core.data.pipeline import assumed_facts

    return assumed_facts(2048)


def _plan(
    report: HardwareReport,
    name: str,
    data: DataFacts,
    calibration: Calibration | None,
    selftest_results: SelftestResults | None,
    **values: Any,
) -> RunPlan | None:
    facts = known_facts(name)
    assert facts is not None, "the list of known models holds the models to choose from"
    given = {setting: Given(value=value, source="probe") for setting, value in ({"model": name} | values).items()}
    try:
        return resolve(
            report, Request(given=given), facts, data, calibration=calibration, selftest_results=selftest_results
        )
    except QloraRunError:
        return None


def _offloaded(plan: RunPlan | None, planned: Callable[..., RunPlan | None]) -> str | None:
    """What speaks against a model that is planned with activations in main memory: that it fits in no other way."""
    if plan is None or not plan.execution_values().offload_activations:
        return None
    on_card = planned(offload_activations=False)
    return None if on_card and on_card.memory.fits else "fits only with activations in main memory"


def _hindrance(report: HardwareReport, name: str, plan: RunPlan | None) -> str | None:
    """What speaks against a model, in words that follow its name."""
    if plan is None or plan.memory.close:
        return "does not fit"
    free, needed = report.disk.cache_free_bytes, 2 * plan.model.params
    if free is not None and needed > DISK_SHARE * free:
        return f"needs {in_gib(needed)} of disk to download"
    if plan.time.steps * plan.time.step_seconds > MOST_SECONDS:
        return f"would take {_duration(plan)}"
    if _tokens_per_second(plan) < SLOWEST_TOKENS_PER_SECOND:
        return f"would train {_tokens_per_second(plan):,.0f} tokens a second"
    return None


def _tokens_per_second(plan: RunPlan) -> float:
    recipe = plan.recipe_values()
    tokens = recipe.examples_per_step * min(plan.data.mean_tokens, recipe.max_length)
    return tokens / plan.time.step_seconds


def _duration(plan: RunPlan) -> str:
    return human_seconds(plan.time.steps * plan.time.step_seconds)


def _about(plan: RunPlan) -> str:
    return f"about {_duration(plan)}"


def _short(name: str) -> str:
    return name.rsplit("/", 1)[-1]
