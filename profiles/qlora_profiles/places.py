"""Folders of ours outside a run's own."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Where things that can be made again lie: ``name`` under ``QLORA_RUN_CACHE``, else under the user's cache."""
    own = os.environ.get("QLORA_RUN_CACHE")
    if own:
        return Path(own).expanduser() / name
    from platformdirs import user_cache_path

    return user_cache_path("qlora-run", appauthor=False) / name
