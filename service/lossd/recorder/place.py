"""Where the runs are kept, as the setting says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lossd.configuration.folders import user_data
from lossd.configuration.preflight import StartError, variable

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["check", "kept", "url"]

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


def check(settings: Settings) -> None:
    """Check the folder of the database that the setting names.

    The folder of the default is not checked: without it the service works, and requests about runs are answered with
    the reason.

    Raises:
        StartError: The folder is absent, not writable, or on a network file system.
    """
    place = _place(settings)
    if place in ("", "off") or "://" in place:
        return
    from lossd.recorder.files import StoreError, check_local

    path = Path(place).expanduser().absolute()
    name, folder = variable("runs"), path.parent
    if path.is_dir():
        raise StartError(f"{name}: {path} is a directory; name a file in it, such as {path / FILE}")
    if not folder.is_dir():
        raise StartError(f"{name}: the folder {folder} does not exist; create it, or name another file")
    try:
        check_local(path)
    except StoreError as error:
        raise StartError(f"{name}: {error}") from None
    if not os.access(folder, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        raise StartError(f"{name}: {path} cannot be written by this user; name another file, or change its owner")


def _place(settings: Settings) -> str:
    """Return the setting; empty for the default."""
    return "" if settings.runs is None else settings.runs.get_secret_value()
