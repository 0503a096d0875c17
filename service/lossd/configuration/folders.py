"""The folder of this user's caches."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path | None:
    """Return lossd's folder in the user's cache; None if the user has no home directory.

    The folder may not exist.
    """
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "lossd"
    try:
        return Path.home() / ".cache" / "lossd"
    except RuntimeError:  # neither HOME nor a passwd entry
        return None
