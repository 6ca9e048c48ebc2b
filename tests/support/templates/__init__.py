"""Chat templates that behave as those of some seventy families do, each with the places where answers begin and end."""

from support.templates.building import CLOSES, OPENS, KnownTemplate
from support.templates.chatml import CHATML_TEMPLATES
from support.templates.others import OTHER_TEMPLATES
from support.templates.turns import TURN_TEMPLATES

TEMPLATES: dict[str, KnownTemplate] = {**CHATML_TEMPLATES, **TURN_TEMPLATES, **OTHER_TEMPLATES}

__all__ = ["CLOSES", "OPENS", "TEMPLATES", "KnownTemplate"]
