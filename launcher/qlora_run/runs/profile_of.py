"""A plan as a profile: what somebody decided in it, and the class of machine that it was made for."""

from typing import Any

from qlora_profiles.plan import PERSON, MachineClass, Profile, RunPlan
from qlora_profiles.registry import settings
from qlora_profiles.settings import READS_DATA
from qlora_profiles.units import GIB

ALWAYS = ("model", "method", "max_length")
"""What every profile names, whoever decided it."""
OF_ONE_RUN = (
    *("data", "output", "resume", "overwrite", "trust_remote_code"),
    *("sample_prompts", "devices", *READS_DATA),
)
"""About one file, one folder or one machine; a profile is for many."""


def profile_of(plan: RunPlan, name: str) -> Profile:
    """The profile that makes such a plan again: recipe values that are not the defaults, and every person's choice."""
    return Profile(name=name, about=_about(plan), machine=_machine(plan), settings=_settings(plan))


def _settings(plan: RunPlan) -> dict[str, Any]:
    kept = {}
    for setting in settings().values():
        resolved = getattr(plan, setting.scope)[setting.name]
        own = resolved.source in PERSON and resolved.value != setting.default
        if setting.name in ALWAYS or (own and setting.name not in OF_ONE_RUN):
            kept[setting.name] = resolved.value
    return kept


def _machine(plan: RunPlan) -> MachineClass:
    card = next(iter(plan.cards()), None)
    if card is None:
        return MachineClass(cpu=True)
    total = card.vram_total_bytes
    system = plan.report.platform.system
    return MachineClass(
        system=system if system in ("windows", "linux") else None, vram_gib=round(total / GIB) if total else None
    )


def _about(plan: RunPlan) -> str:
    where = next((card.name for card in plan.cards()), "a CPU")
    return f"your own: {plan.model.name} by {plan.recipe_values().method}, planned for {where}"
