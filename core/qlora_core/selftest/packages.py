"""Packages whose import does the damage: they patch others, and say so only then."""

import importlib
from typing import Any

from qlora_core.selftest.registry import Found


def unsloth_imports() -> Found:
    """Unsloth patches transformers when it is imported: first, as it asks for, and in a process of its own."""
    unsloth: Any = importlib.import_module("unsloth")
    if not hasattr(unsloth, "FastLanguageModel"):
        raise ImportError("unsloth has no FastLanguageModel")
    return {"version": str(getattr(unsloth, "__version__", "?"))}
