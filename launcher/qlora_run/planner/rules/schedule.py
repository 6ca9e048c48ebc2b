"""Shapes of the learning rate that transformers cannot compute for a run's length or rate."""

import math
from collections.abc import Callable
from typing import Any

from qlora_profiles.errors import UserError
from qlora_run.report.formatting import number

POLYNOMIAL_END = 1e-7
"""The rate that transformers lets a polynomial end at."""


def check_schedule(steps: int, value: Callable[[str], Any]) -> None:
    """Raises UserError for a polynomial that has no step left to fall in, or starts no higher than it ends."""
    if value("lr_scheduler") != "polynomial":
        return
    rate, asked = value("learning_rate"), value("warmup_steps")
    if rate <= POLYNOMIAL_END:
        said = f"--lr-scheduler polynomial ends at a rate of 1e-7, and --learning-rate {number(rate)} is no higher"
        raise UserError(said, "--lr-scheduler linear")
    warming = math.ceil(steps * value("warmup_ratio")) if asked is None else asked
    if warming == steps:
        said = f"--lr-scheduler polynomial: the warm-up takes {'the only step' if steps == 1 else f'all {steps} steps'}"
        raise UserError(said, "--warmup-ratio 0" if asked is None else "--warmup-steps 0")
