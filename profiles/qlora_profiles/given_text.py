"""Texts that no setting can have, whatever it means: refused where they are given, not where they are used."""

import os
import re
import sys
from pathlib import Path, PureWindowsPath

from qlora_profiles.errors import UserError

PATHS = frozenset(
    [
        "model",
        "data",
        "chat_template",
        "output",
        "resume",
        "local_dir",
        "cache",
        "config",
        "adapter",
        "base",
        "folder",
        "from",
        "as",
        "report",
    ]
)
"""Settings and options that may hold a path."""
RESERVED = re.compile(r"(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?", re.IGNORECASE)
"""Names that Windows keeps for its devices."""
LONGEST_NAME_BYTES = 255
"""Of a file or folder, on every usual system."""


def check_text(name: str, text: str) -> None:
    """Raise UserError for a value of setting ``name`` that nothing could be done with."""
    if "\0" in text:
        raise UserError(f"{name}: a null character in {text[:60]!r}", "another value")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UserError(f"{name}: {text[:60]!a} is no Unicode text (half of a surrogate pair)", "another value")
    if name in PATHS:
        _check_path(name, text)


def _no_home(text: str) -> bool:
    try:
        return str(Path(text).expanduser()).startswith("~")
    except RuntimeError:
        return True


def _check_path(name: str, text: str) -> None:
    if text.startswith("~") and _no_home(text) and not Path(text).exists():
        home = re.split(r"[/\\]", text)[0]
        raise UserError(f"{name}: {text[:80]}: there is no home folder {home}", "the path in full")
    longest = max(re.split(r"[/\\]", text), key=len)
    if len(os.fsencode(longest)) > LONGEST_NAME_BYTES:
        raise UserError(f"{name}: {longest[:40]}...: a name of {len(longest)} letters is too long", "a shorter name")
    if sys.platform == "win32" and any(RESERVED.fullmatch(part) for part in PureWindowsPath(text).parts):
        raise UserError(f"{name}: {text}: Windows keeps this name for a device", "another name")
