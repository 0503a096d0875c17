"""How much work is taken in: in bytes and in requests, all together and from each client."""

from __future__ import annotations

from dataclasses import dataclass

from lossd_client.errors import QueueFull, TooLarge

__all__ = ["Budget"]

FORGET = 0.9
SHORTEST_S, LONGEST_S, UNKNOWN_S = 0.1, 60.0, 1.0


@dataclass(slots=True)
class Held:
    """What one client's requests in progress hold."""

    nbytes: int = 0
    requests: int = 0


class Budget:
    """What requests in progress hold, and the most they may.

    A client with a name may hold no more than it leaves free. So one alone gets half, two that ask for all they can get
    a third each, and there is always room for one who comes later. Without names there is nobody to leave it to.

    Args:
        limit_bytes: The setting ``queue_bytes``.
        limit_requests: The setting ``queue_requests``.

    Attributes:
        held: All together.
        gathered_bytes: What has arrived of bodies that have to be whole before they can be read.
    """

    def __init__(self, limit_bytes: int, limit_requests: int) -> None:
        self.limit_bytes = limit_bytes
        self.limit_requests = limit_requests
        self.held = Held()
        self.gathered_bytes = 0
        self._clients: dict[str, Held] = {}
        # Sums over the batches evaluated, each weighing less than the one after it.
        self._bytes = self._requests = self._busy_s = 0.0
        self._last_s = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes that requests in progress hold."""
        return self.held.nbytes

    def admit(self, client: str, nbytes: int) -> None:
        """Count a request in.

        Raises:
            TooLarge: There will never be room.
            QueueFull: With the seconds after which there will be room.
        """
        most = self.limit_bytes // 2 if client else self.limit_bytes
        if nbytes > most:
            share = ", half of it for a key" if client else ""
            raise TooLarge(
                f"this request needs {nbytes} bytes with its answer; at most {self.limit_bytes} are held at a time "
                f"(setting queue_bytes){share}"
            )
        held, own = self.held, self._clients.get(client)
        if own is None:
            own = self._clients[client] = Held()
        free_bytes = self.limit_bytes - held.nbytes - self.gathered_bytes
        free_requests = self.limit_requests - held.requests
        if client:
            free_bytes -= own.nbytes
            free_requests -= own.requests
        if nbytes > free_bytes or free_requests < 1:
            raise self._refusal(client, nbytes, nbytes - free_bytes, 1 - free_requests)
        held.nbytes += nbytes
        held.requests += 1
        own.nbytes += nbytes
        own.requests += 1

    def release(self, client: str, nbytes: int) -> None:
        """Count a request out."""
        held, own = self.held, self._clients[client]
        held.nbytes -= nbytes
        held.requests -= 1
        own.nbytes -= nbytes
        own.requests -= 1

    def gather(self, nbytes: int) -> None:
        """Count a piece of a body that is gathered; negative, when it is no longer.

        Raises:
            QueueFull: With the seconds after which there will be room.
        """
        missing = self.held.nbytes + self.gathered_bytes + nbytes - self.limit_bytes
        if nbytes > 0 and missing > 0:
            raise QueueFull(
                f"requests in progress and bodies that arrive hold {self.held.nbytes + self.gathered_bytes} bytes; at "
                f"most {self.limit_bytes} are held at a time (setting queue_bytes)",
                retry_after_s=self.wait_s(missing, 0),
            )
        self.gathered_bytes += nbytes

    def observe(self, nbytes: int, requests: int, sent_s: float, now_s: float) -> None:
        """Learn how fast work goes through.

        Args:
            nbytes: Of a batch that was evaluated.
            requests: In it.
            sent_s: When it was sent to the worker, on the monotonic clock. Time before the batch ahead of it was back
                is not counted twice.
            now_s: When it came back.
        """
        self._bytes = FORGET * self._bytes + nbytes
        self._requests = FORGET * self._requests + requests
        self._busy_s = FORGET * self._busy_s + max(now_s - max(sent_s, self._last_s), 1e-6)
        self._last_s = now_s

    def wait_s(self, nbytes: int, requests: int) -> float:
        """How long it takes until that much more is done, at the rate of late."""
        if not self._busy_s:
            return UNKNOWN_S
        # Work that was never seen, or only without bytes, cannot be divided by.
        by_bytes = nbytes / self._bytes if self._bytes else 0.0
        wait_s = self._busy_s * max(by_bytes, requests / self._requests)
        return min(LONGEST_S, max(SHORTEST_S, wait_s))

    def _refusal(self, client: str, nbytes: int, missing_bytes: int, missing_requests: int) -> QueueFull:
        held, own = self.held, self._clients[client]
        detail = (
            f"{held.requests} requests with {held.nbytes} bytes are in progress and this one needs {nbytes}; at most "
            f"{self.limit_requests} requests and {self.limit_bytes} bytes are held at a time (settings queue_requests "
            "and queue_bytes)"
        )
        if client:
            detail += (
                f", and a key may hold no more than it leaves free: yours holds {own.requests} requests and "
                f"{own.nbytes} bytes"
            )
        return QueueFull(detail, retry_after_s=self.wait_s(missing_bytes, missing_requests))
