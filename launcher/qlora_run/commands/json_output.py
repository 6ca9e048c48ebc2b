"""Words for programs: JSON on standard output that any encoding can carry."""

import json
import sys
from typing import Any

import msgspec

from qlora_profiles.visible import visible_json
from qlora_run.terminal.glyphs import glyphs_for


def print_json(value: Any) -> None:
    """Print a contract value as JSON: letters as they are in Unicode, escaped in any other encoding."""
    text = json.dumps(msgspec.to_builtins(value), indent=2, ensure_ascii=glyphs_for(sys.stdout).ascii_only)
    print(visible_json(text))
