"""Which view a run gets."""

from pathlib import Path
from typing import Any

from qlora_profiles.plan import RunPlan
from qlora_run.report.view import View


def run_view(plan: RunPlan, output: Path, stream: Any = None) -> View:
    """A drawing on a terminal that can be drawn over, plain lines anywhere else (default: standard output)."""
    from qlora_run.terminal.console import make_console
    from qlora_run.terminal.live import LiveView
    from qlora_run.terminal.plain import PlainView
    from qlora_run.terminal.temperature import gpu_thermometer

    console = make_console(stream)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, plan, output, gpu_thermometer(plan.cards()))
    return PlainView(console, plan, output)
