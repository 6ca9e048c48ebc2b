"""What earlier runs measured on this machine: its context, how well memory was predicted, and its speed."""

from qlora_run.calibration.records import Calibration, Fitted
from qlora_run.calibration.store import load

__all__ = ["Calibration", "Fitted", "load"]
