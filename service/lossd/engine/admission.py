"""How much work is taken in: in bytes and in requests, all together and from each client."""

from __future__ import annotations

from dataclasses import dataclass

from lossd_client.errors import QueueFull, TooLarge

__all__ = ["Budget"]

FORGET = 0.9
SHORTEST_S, LONGEST_S, UNKNOWN_S = 0.1, 60.0, 1.0
SHARE = ", and a key may hold no more than it leaves free: yours holds"


@dataclass(slots=True)
class Held:
    """What requests in progress hold, and bodies that have to be whole before they are requests."""

    nbytes: int = 0
    requests: int = 0
    gathered_bytes: int = 0


class Budget:
    """What requests in progress hold, and the most they may.

    A client with a name may hold no more than it leaves free. So one alone gets half, two that ask for all they can get
    a third each, and there is always room for one who comes later. Without names there is nobody to leave it to.

    Args:
        limit_bytes: The setting ``queue_bytes``.
        limit_requests: The setting ``queue_requests``.

    Attributes:
        held: All together.
    """

    def __init__(self, limit_bytes: int, limit_requests: int) -> None:
        self.limit_bytes = limit_bytes
        self.limit_requests = limit_requests
        self.held = Held()
        self._clients: dict[str, Held] = {}
        # Sums over the batches evaluated, each weighing less than the one after it.
        self._bytes = self._requests = self._busy_s = 0.0
        self._last_s = 0.0

    @property
    def held_bytes(self) -> int:
        """Bytes that requests in progress hold."""
        return self.held.nbytes

    @property
    def gathered_bytes(self) -> int:
        """What has arrived, or was announced, of bodies that have to be whole before they can be read."""
        return self.held.gathered_bytes

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
                f"this request needs {nbytes} bytes with its answer and temporaries; at most {self.limit_bytes} are "
                f"held at a time (setting queue_bytes){share}; send smaller batches"
            )
        held, own = self.held, self._of(client)
        free_bytes = self._free_bytes(client)
        free_requests = self.limit_requests - held.requests
        if client:
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

    def gather(self, client: str, nbytes: int, whole: int = 0) -> None:
        """Count a piece of a client's body that is gathered; negative, when it is no longer.

        Args:
            client: Whose it is.
            nbytes: Of the piece.
            whole: Bytes of the body with that piece, as far as they are known.

        Raises:
            TooLarge: There will never be room.
            QueueFull: With the seconds after which there will be room.
        """
        if whole > (most := self.limit_bytes // 2 if client else self.limit_bytes):
            share = f", {most} of them for a key" if client else ""
            raise TooLarge(
                f"the body has {whole} bytes or more, and has to be whole before it is read; at most "
                f"{self.limit_bytes} are held at a time (setting queue_bytes){share}; send smaller batches, or "
                "safetensors"
            )
        held, own = self.held, self._of(client)
        missing = nbytes - self._free_bytes(client)
        if nbytes > 0 and missing > 0:
            detail = (
                f"requests in progress and bodies that arrive hold {held.nbytes + held.gathered_bytes} bytes; at "
                f"most {self.limit_bytes} are held at a time (setting queue_bytes)"
            )
            if client:
                detail += f"{SHARE} {own.nbytes + own.gathered_bytes} bytes"
            raise QueueFull(detail, retry_after_s=self.wait_s(missing, 0))
        self.add(client, nbytes)

    def add(self, client: str, nbytes: int) -> None:
        """Count what cannot be refused any more, the text of a computed answer; negative, when it is no longer held.

        Until then, less is taken in.
        """
        self.held.gathered_bytes += nbytes
        self._of(client).gathered_bytes += nbytes

    def _of(self, client: str) -> Held:
        own = self._clients.get(client)
        if own is None:
            own = self._clients[client] = Held()
        return own

    def _free_bytes(self, client: str) -> int:
        """What this client may still hold."""
        held = self.held
        free = self.limit_bytes - held.nbytes - held.gathered_bytes
        if client:
            own = self._clients[client]
            free -= own.nbytes + own.gathered_bytes
        return free

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
            f"{held.requests} requests with {held.nbytes + held.gathered_bytes} bytes are in progress or arrive, and "
            f"this one needs {nbytes}; at most "
            f"{self.limit_requests} requests and {self.limit_bytes} bytes are held at a time (settings queue_requests "
            "and queue_bytes)"
        )
        if client:
            detail += f"{SHARE} {own.requests} requests and {own.nbytes + own.gathered_bytes} bytes"
        return QueueFull(detail, retry_after_s=self.wait_s(missing_bytes, missing_requests))
