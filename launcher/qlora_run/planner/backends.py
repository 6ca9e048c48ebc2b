"""Which backends could run here, as far as package metadata tells; the core proves it."""

from importlib.metadata import entry_points

from qlora_core.backends.unsloth import requirements
from qlora_profiles.hardware import HardwareReport
from qlora_profiles.settings import BACKEND_GROUP


def backend_reasons(report: HardwareReport) -> dict[str, str | None]:
    """Backend name -> why it cannot be used on ``report``'s machine, or ``None`` where it can."""
    reasons: dict[str, str | None] = {"peft": None, "unsloth": requirements.missing(report)}
    return reasons | {entry.name: None for entry in entry_points(group=BACKEND_GROUP)}
