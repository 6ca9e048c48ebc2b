"""Compiled modules of the libraries, where Python may neither find nor keep them: containers often tell it not to.

Every process would compile torch and transformers from their sources then, which takes longer than to import them.
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from qlora_profiles.places import cache_folder

LARGE = ("torch", "transformers")
"""Libraries for which it matters."""
PREFIX, NEVER = "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE"


def keep_compiled() -> None:
    """Let this process and those it starts keep compiled modules in our cache, where there is no other place."""
    if sys.pycache_prefix is not None or not _compiled_each_time():
        return
    place = cache_folder("compiled")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:  # Python would look for compiled modules nowhere else, and could keep none here
        return
    sys.pycache_prefix, sys.dont_write_bytecode = str(place), False
    os.environ[PREFIX] = sys.pycache_prefix
    os.environ.pop(NEVER, None)


def _compiled_each_time() -> bool:
    """Whether a large library has no compiled form and will get none where Python would put it."""
    for name in LARGE:
        spec = find_spec(name)
        if spec is None or spec.cached is None or spec.origin is None or Path(spec.cached).exists():
            continue
        if sys.dont_write_bytecode or not os.access(Path(spec.origin).parent, os.W_OK):
            return True
    return False
