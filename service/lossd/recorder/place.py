"""Where the runs are kept, as the setting says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lossd.configuration.folders import user_data

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["kept", "url"]

FILE = "runs.db"


def kept(settings: Settings) -> bool:
    """Whether the service keeps runs."""
    return _place(settings) != "off"


def url(settings: Settings) -> str | None:
    """Return the database of the runs: a path, or ``postgresql://...``; None if the user has no folder for data."""
    if place := _place(settings):
        return place if "://" in place else str(Path(place).expanduser().absolute())
    folder = user_data()
    return None if folder is None else str(folder / FILE)


def _place(settings: Settings) -> str:
    """Return the setting; empty for the default."""
    return "" if settings.runs is None else settings.runs.get_secret_value()
