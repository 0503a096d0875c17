"""How many replicas the load needs: a policy for Serve's autoscaling. Imports no Ray.

CPU time is no measure of load: front and worker poll before they sleep, so that a replica with one client burns more
of a core than one with 64. The policy reads how long front and worker were busy.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossd.engine import Engine

__all__ = ["BACKLOG_S", "BUSY", "Meter", "policy"]

BUSY = 0.6
"""The part of the time for which a replica may be busy."""

BACKLOG_S = 0.5
"""The work that may wait for a replica, in seconds."""


class Meter:
    """Measures one replica's load between two readings.

    Args:
        engine: The replica's engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read()

    def _read(self) -> None:
        load = self._engine.load
        self._at_s = time.monotonic()
        self._front_s = load.front_busy_s
        self._workers_s = dict(load.worker_busy_s)

    def read(self) -> dict[str, float]:
        """Return the load since the last reading.

        Returns:
            ``busy``: the part of the time for which the front or the average worker was busy, whichever is more;
            ``backlog_s``: the work that waits, in seconds.
        """
        at_s, front_s, workers_s = self._at_s, self._front_s, self._workers_s
        self._read()
        if (elapsed_s := self._at_s - at_s) <= 0:
            return {"busy": 0.0, "backlog_s": self._engine.load.backlog_s}
        worked_s = [spent - workers_s.get(index, 0.0) for index, spent in self._workers_s.items()]
        busy_s = max(self._front_s - front_s, sum(worked_s) / max(1, len(worked_s)))
        return {"busy": min(1.0, max(0.0, busy_s / elapsed_s)), "backlog_s": self._engine.load.backlog_s}


def policy(context: Any) -> tuple[float, dict[str, Any]]:
    """Return how many replicas are needed; Serve rounds up, and applies its bounds and delays.

    Args:
        context: Serve's ``AutoscalingContext``, with the readings of the replicas averaged over some seconds.
    """
    readings = context.aggregated_metrics or {}
    if not readings.get("busy"):  # no replica has reported yet
        return context.target_num_replicas, {}
    busy, backlog_s = (sum(readings.get(name, {}).values()) for name in ("busy", "backlog_s"))
    return max(busy / BUSY, backlog_s / BACKLOG_S), {}
