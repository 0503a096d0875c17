"""Where this user's caches are: what can be made again, kept for the next start."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path | None:
    """The folder for lossd in the user's cache; None where the user has no home, as one without a passwd entry.

    Whether it is there, or can be made, is not checked.
    """
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "lossd"
    try:
        return Path.home() / ".cache" / "lossd"
    except RuntimeError:  # neither HOME nor a passwd entry
        return None
