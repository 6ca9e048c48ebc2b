"""From a machine, a request, a model and data to a plan: ``resolve()``, with the models of memory and speed."""

from qlora_run.planner.context import devices_given
from qlora_run.planner.cost.estimate import estimate_memory
from qlora_run.planner.default_model import Pick, default_model
from qlora_run.planner.resolve import PEFT_ONLY, resolve
from qlora_run.planner.retune import as_measured, retuned
from qlora_run.planner.rules.recipe import usual_length
from qlora_run.planner.search.capacity import largest_length

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
