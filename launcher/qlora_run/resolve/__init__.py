"""From a machine, a request, a model and data to a plan: ``resolve()``, with the models of memory and speed."""

from qlora_run.resolve.capacity import largest_length
from qlora_run.resolve.estimate import estimate_memory
from qlora_run.resolve.models import Pick, default_model
from qlora_run.resolve.planner import PEFT_ONLY, resolve
from qlora_run.resolve.recipe_rules import usual_length
from qlora_run.resolve.retune import as_measured, retuned
from qlora_run.resolve.situation import devices_given

__all__ = [
    "PEFT_ONLY",
    "Pick",
    "as_measured",
    "default_model",
    "devices_given",
    "estimate_memory",
    "largest_length",
    "resolve",
    "retuned",
    "usual_length",
]
