"""The points where tests kill the recorder.

The environment variable ``_LOSSD_RECORDER_KILL=POINT`` or ``POINT:N`` makes the recorder kill itself with SIGKILL when
it reaches the point for the N-th time. The underscore marks the variable as no setting.
"""

from __future__ import annotations

import os
import signal

__all__ = [
    "COMMITTED",
    "DELETING",
    "FOLDING",
    "POINTS",
    "RECEIVED",
    "SEALING",
    "VARIABLE",
    "WAITING",
    "WRITTEN",
    "reach",
]

VARIABLE = "_LOSSD_RECORDER_KILL"

RECEIVED = "received"
"""A request to count was read from its connection."""

WAITING = "waiting"
"""Before BEGIN of a transaction that counts."""

WRITTEN = "written"
"""Inside a transaction that counts: its rows are written, and not committed."""

COMMITTED = "committed"
"""After the commit of a transaction that counts, before the answer."""

FOLDING = "folding"
"""Inside a transaction that folds states: the fold is written, and not committed."""

SEALING = "sealing"
"""Inside a transaction that seals a run."""

DELETING = "deleting"
"""Inside a transaction that deletes a run."""

POINTS = frozenset({RECEIVED, WAITING, WRITTEN, COMMITTED, FOLDING, SEALING, DELETING})


def _planned() -> tuple[str, int]:
    """Return the point and the occurrence that the environment names; an empty name if it names none.

    Raises:
        ValueError: The environment names an unknown point.
    """
    point, _, occurrence = os.environ.get(VARIABLE, "").partition(":")
    if point and point not in POINTS:
        raise ValueError(f"{VARIABLE}: {point!r} is no point; the points are {', '.join(sorted(POINTS))}")
    return point, int(occurrence or 1)


_point, _left = _planned()


def reach(point: str) -> None:
    """Kill this process with SIGKILL if the environment asks for it at this point."""
    global _left
    if point == _point:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
