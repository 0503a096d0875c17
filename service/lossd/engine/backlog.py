"""How long the workers will take for the requests that wait for an answer."""

from __future__ import annotations

from collections.abc import Iterable

from lossd.engine.batcher import REQUEST_NS, Batch, Ticket

__all__ = ["Backlog"]

FORGET = 0.9


class Backlog:
    """Estimates of requests, corrected by the times of the last batches.

    The estimates know what a loss takes, and so small and large requests add up. The correction knows the device.
    """

    def __init__(self) -> None:
        # Sums over the evaluated batches; later batches have larger weights.
        self._took_s = self._estimated_s = 0.0

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learn from an evaluated batch.

        Args:
            batch: The batch.
            seconds: The time that it took of a worker.
        """
        estimated_s = (batch.work_ns + REQUEST_NS * len(batch.tickets)) / 1e9
        self._took_s = FORGET * self._took_s + seconds
        self._estimated_s = FORGET * self._estimated_s + estimated_s

    def seconds(self, tickets: Iterable[Ticket], workers: int) -> float:
        """Return the seconds until all requests without an answer would be evaluated, if no other came.

        Args:
            tickets: The requests in progress.
            workers: The number of workers that share them.
        """
        work_ns = sum(ticket.job.work_ns + REQUEST_NS for ticket in tickets if not ticket.future.done())
        correction = self._took_s / self._estimated_s if self._estimated_s else 1.0
        return work_ns / 1e9 * correction / workers
