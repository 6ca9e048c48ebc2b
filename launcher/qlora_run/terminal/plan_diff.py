"""The changes between two plans, laid out for a terminal."""

from qlora_profiles.plan import RunPlan
from qlora_run.report.plan_changes import plan_changes
from qlora_run.terminal.glyphs import ASCII, UNICODE


def plan_diff_text(old: RunPlan, new: RunPlan, width: int = 80, ascii: bool = False) -> str:
    """What ``new`` does otherwise than ``old``, in lines of at most ``width`` cells."""
    from rich.text import Text

    from qlora_run.terminal.plan_view import as_text

    glyphs = ASCII if ascii else UNICODE
    return as_text(Text(glyphs.spell("\n".join(plan_changes(old, new)))), width)
