"""Several fronts on one port, in front of the same workers.

``lossd serve --fronts 4`` starts a small parent (:mod:`lossd.fronts.parent`). It keeps the workers, one a device, and
the fronts, each the same command once more with a :class:`Place` in its environment. The fronts listen on one port
(:mod:`lossd.fronts.port`), among which the kernel spreads connections, and each connects to every worker. With its
parent a front (:mod:`lossd.fronts.member`) speaks of what was counted and of nothing else (:mod:`lossd.fronts.counts`).
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

import orjson

__all__ = ["Place"]

_VARIABLE = "_LOSSD_FRONT"  # no setting, as the underscore says


@dataclass(frozen=True, slots=True)
class Place:
    """What a front is told by its parent.

    Attributes:
        port: Where it listens, with the others.
        socket: The file descriptor of its connection to the parent.
        workers: The address of each device's worker.
    """

    port: int
    socket: int
    workers: tuple[str, ...]

    def environment(self) -> dict[str, str]:
        """How it is handed to a new process."""
        return {_VARIABLE: orjson.dumps(asdict(self)).decode()}

    @staticmethod
    def is_given() -> bool:
        """Whether this process is one of several fronts."""
        return _VARIABLE in os.environ

    @staticmethod
    def given() -> Place | None:
        """This process's, if it is one of several fronts; it is taken out of the environment."""
        text = os.environ.pop(_VARIABLE, None)
        if text is None:
            return None
        place = orjson.loads(text)
        return Place(place["port"], place["socket"], tuple(place["workers"]))
