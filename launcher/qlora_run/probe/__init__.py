"""What this machine is, found out in well under a second and without importing torch.

``python -m qlora_run.probe`` prints the report as JSON.
"""

from qlora_run.probe.survey import probe

__all__ = ["probe"]
