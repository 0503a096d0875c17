"""What a keeper passes to the recorder."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from lossd.recorder.place import url

if TYPE_CHECKING:
    from lossd.configuration.settings import Settings

__all__ = ["RecorderConfig"]

_VARIABLE = "_LOSSD_RECORDER"  # the underscore marks it as no setting


@dataclass(frozen=True, slots=True)
class RecorderConfig:
    """What a keeper passes to the recorder, in the environment: other users can read a command line.

    Attributes:
        listener: The file descriptor of the listening socket.
        parent: The keeper's process id.
        url: The database: a path, or ``postgresql://...``; empty if the user has no folder for it.
        limits: The arguments of :class:`lossd.recorder.store.Limits`.
        log_level: As the front's.
        log_format: As the front's.
    """

    listener: int
    parent: int
    url: str
    limits: dict[str, Any]
    log_level: str
    log_format: str

    @staticmethod
    def of(settings: Settings, listener: int) -> RecorderConfig:
        """Return the configuration for a process that this one starts."""
        limits = {
            "runs_per_key": settings.runs_per_key,
            "run_bytes": int(settings.run_bytes),
            "runs_bytes_per_key": int(settings.runs_bytes_per_key),
            "keep_open_days": settings.runs_keep_open_days,
            "keep_days": settings.runs_keep_days,
        }
        return RecorderConfig(
            listener, os.getpid(), url(settings) or "", limits, settings.log_level, settings.log_format
        )

    def environment(self) -> dict[str, str]:
        """Return the environment variable that passes it to a new process."""
        return {_VARIABLE: orjson.dumps(asdict(self)).decode()}

    @staticmethod
    def from_environment() -> RecorderConfig:
        """Return this process's configuration and remove it from the environment."""
        return RecorderConfig(**orjson.loads(os.environ.pop(_VARIABLE)))
