"""From a machine, wishes, a model and data to a plan: ``resolve()``, and the models of memory and speed behind it."""

from qlora_run.resolve.capacity import largest_length
from qlora_run.resolve.estimate import estimate_memory
from qlora_run.resolve.models import Pick, default_model
from qlora_run.resolve.planner import PEFT_ONLY, resolve
from qlora_run.resolve.recipe_rules import usual_length
from qlora_run.resolve.retune import as_measured, retuned
from qlora_run.resolve.situation import devices_asked, merged_wishes

__all__ = [
    "PEFT_ONLY",
    "Pick",
    "as_measured",
    "default_model",
    "devices_asked",
    "estimate_memory",
    "largest_length",
    "merged_wishes",
    "resolve",
    "retuned",
    "usual_length",
]
