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


def config_folder(name: str) -> Path:
    """Where things that a person keeps lie: ``name`` under ``QLORA_RUN_CONFIG``, else under the user's settings."""
    own = os.environ.get("QLORA_RUN_CONFIG")
    if own:
        return Path(own).expanduser() / name
    from platformdirs import user_config_path

    return user_config_path("qlora-run", appauthor=False) / name
