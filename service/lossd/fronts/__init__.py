"""Several fronts on one port, in front of the same workers and the same recorder.

``lossd serve --fronts 4`` starts a parent process (:mod:`lossd.fronts.parent`). It starts and restarts the workers, one
a device, the fronts, and the recorder once a run is asked for. A front is the same command with a
:class:`FrontConfig` in its environment. All fronts listen on one port (:mod:`lossd.fronts.port`), and the kernel
distributes connections between them. Each front connects to every worker. A front and its parent
(:mod:`lossd.fronts.member`) exchange states and counters (:mod:`lossd.fronts.counts`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import orjson

__all__ = ["FrontConfig"]

_VARIABLE = "_LOSSD_FRONT"  # the underscore marks it as no setting


@dataclass(frozen=True, slots=True)
class FrontConfig:
    """What a parent passes to a front.

    Attributes:
        port: The port that all fronts listen on.
        socket: The file descriptor of the connection to the parent.
        workers: The address of each device's worker.
        recorder: The address of the recorder; None if the service keeps no runs.
        uds: The file descriptor of the listening Unix socket; None without one.
        regions: The file descriptor of the table of shared memory; None without one.
    """

    port: int
    socket: int
    workers: tuple[str, ...]
    recorder: str | None = None
    uds: int | None = None
    regions: int | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment variable that passes it to a new process."""
        return {_VARIABLE: orjson.dumps(asdict(self)).decode()}

    @staticmethod
    def in_environment() -> bool:
        """Whether this process is one of several fronts."""
        return _VARIABLE in os.environ

    @staticmethod
    def from_environment() -> FrontConfig | None:
        """Return this process's configuration and remove it from the environment; None for a single front."""
        text = os.environ.pop(_VARIABLE, None)
        if text is None:
            return None
        values = orjson.loads(text)
        return FrontConfig(**{**values, "workers": tuple(values["workers"])})
