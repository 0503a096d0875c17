"""The folders of this user: of caches, and of data."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache", "user_data"]


def user_cache() -> Path | None:
    """Return lossd's folder in the user's cache; None if the user has no home directory.

    The folder may not exist.
    """
    return _folder("XDG_CACHE_HOME", ".cache")


def user_data() -> Path | None:
    """Return lossd's folder for the user's data; None if the user has no home directory.

    The folder may not exist.
    """
    return _folder("XDG_DATA_HOME", ".local/share")


def _folder(variable: str, below_home: str) -> Path | None:
    """Return lossd's folder by the XDG Base Directory Specification."""
    if base := os.environ.get(variable):
        return Path(base) / "lossd"
    try:
        return Path.home() / below_home / "lossd"
    except RuntimeError:  # neither HOME nor a passwd entry
        return None
