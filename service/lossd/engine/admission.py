"""Admission: limits on the bytes and the number of requests in progress, in all and for each client."""

from __future__ import annotations

from dataclasses import dataclass

from lossd_client.errors import QueueFull, TooLarge

__all__ = ["Budget"]

FORGET = 0.9
SHORTEST_S, LONGEST_S, UNKNOWN_S = 0.1, 60.0, 1.0
SHARE = ", and a key may hold no more than it leaves free: yours holds"


@dataclass(slots=True)
class Held:
    """The memory and number of requests in progress, and the memory of bodies that are being gathered."""

    nbytes: int = 0
    requests: int = 0
    gathered_bytes: int = 0


class Budget:
    """Counts what requests in progress hold, and enforces the limits.

    A client with a name may hold no more than it leaves free. One client alone gets half, two greedy clients a third
    each, and a later client always finds room. Without names the whole limit is available.

    Args:
        limit_bytes: The setting ``queue_bytes``.
        limit_requests: The setting ``queue_requests``.

    Attributes:
        held: The sum over all clients.
    """

    def __init__(self, limit_bytes: int, limit_requests: int) -> None:
        self.limit_bytes = limit_bytes
        self.limit_requests = limit_requests
        self.held = Held()
        self._clients: dict[str, Held] = {}
        # Sums over the evaluated batches; later batches have larger weights.
        self._bytes = self._requests = self._busy_s = 0.0
        self._last_s = 0.0

    @property
    def held_bytes(self) -> int:
        """The bytes of requests in progress."""
        return self.held.nbytes

    @property
    def gathered_bytes(self) -> int:
        """The bytes that have arrived, or were announced, of bodies that must be whole before they are read."""
        return self.held.gathered_bytes

    def admit(self, client: str, nbytes: int) -> None:
        """Count a request.

        Raises:
            TooLarge: The limit is too low for it.
            QueueFull: There is no room now; it says in how many seconds there may be.
        """
        most = self.limit_bytes // 2 if client else self.limit_bytes
        if nbytes > most:
            share = ", half of it for a key" if client else ""
            raise TooLarge(
                f"this request needs {nbytes} bytes with its answer and temporaries; at most {self.limit_bytes} are "
                f"held at a time (setting queue_bytes){share}; send smaller batches"
            )
        held, client_held = self.held, self._of(client)
        free_bytes = self._free_bytes(client)
        free_requests = self.limit_requests - held.requests
        if client:
            free_requests -= client_held.requests
        if nbytes > free_bytes or free_requests < 1:
            raise self._refusal(client, nbytes, nbytes - free_bytes, 1 - free_requests)
        held.nbytes += nbytes
        held.requests += 1
        client_held.nbytes += nbytes
        client_held.requests += 1

    def release(self, client: str, nbytes: int) -> None:
        """Stop counting a request."""
        held, client_held = self.held, self._clients[client]
        held.nbytes -= nbytes
        held.requests -= 1
        client_held.nbytes -= nbytes
        client_held.requests -= 1

    def gather(self, client: str, nbytes: int, whole: int = 0) -> None:
        """Count a piece of a body that is being gathered; a negative size stops counting it.

        Args:
            client: The client's name.
            nbytes: The piece's size.
            whole: The known size of the body up to this piece.

        Raises:
            TooLarge: The limit is too low for it.
            QueueFull: There is no room now; it says in how many seconds there may be.
        """
        if whole > (most := self.limit_bytes // 2 if client else self.limit_bytes):
            share = f", {most} of them for a key" if client else ""
            raise TooLarge(
                f"the body has {whole} bytes or more, and has to be whole before it is read; at most "
                f"{self.limit_bytes} are held at a time (setting queue_bytes){share}; send smaller batches, or "
                "safetensors"
            )
        held, client_held = self.held, self._of(client)
        missing = nbytes - self._free_bytes(client)
        if nbytes > 0 and missing > 0:
            detail = (
                f"requests in progress and bodies that arrive hold {held.nbytes + held.gathered_bytes} bytes; at "
                f"most {self.limit_bytes} are held at a time (setting queue_bytes)"
            )
            if client:
                detail += f"{SHARE} {client_held.nbytes + client_held.gathered_bytes} bytes"
            raise QueueFull(detail, retry_after_s=self.wait_s(missing, 0))
        self.add(client, nbytes)

    def add(self, client: str, nbytes: int) -> None:
        """Count memory without a check: the text of a computed answer. A negative size stops counting it."""
        self.held.gathered_bytes += nbytes
        self._of(client).gathered_bytes += nbytes

    def _of(self, client: str) -> Held:
        client_held = self._clients.get(client)
        if client_held is None:
            client_held = self._clients[client] = Held()
        return client_held

    def _free_bytes(self, client: str) -> int:
        """Return how many more bytes this client may hold."""
        held = self.held
        free = self.limit_bytes - held.nbytes - held.gathered_bytes
        if client:
            client_held = self._clients[client]
            free -= client_held.nbytes + client_held.gathered_bytes
        return free

    def observe(self, nbytes: int, requests: int, sent_s: float, now_s: float) -> None:
        """Update the measured throughput with a batch that was evaluated.

        Args:
            nbytes: The batch's bytes.
            requests: The number of its requests.
            sent_s: When it was sent to the worker, on the monotonic clock. Time before the previous batch was answered
                is not counted twice.
            now_s: When it was answered.
        """
        self._bytes = FORGET * self._bytes + nbytes
        self._requests = FORGET * self._requests + requests
        self._busy_s = FORGET * self._busy_s + max(now_s - max(sent_s, self._last_s), 1e-6)
        self._last_s = now_s

    def wait_s(self, nbytes: int, requests: int) -> float:
        """Return how many seconds so much work takes at the measured throughput."""
        if not self._busy_s:
            return UNKNOWN_S
        # The sums are 0 before the first batch, and the bytes may stay 0.
        by_bytes = nbytes / self._bytes if self._bytes else 0.0
        wait_s = self._busy_s * max(by_bytes, requests / self._requests)
        return min(LONGEST_S, max(SHORTEST_S, wait_s))

    def _refusal(self, client: str, nbytes: int, missing_bytes: int, missing_requests: int) -> QueueFull:
        held, client_held = self.held, self._clients[client]
        detail = (
            f"{held.requests} requests with {held.nbytes + held.gathered_bytes} bytes are in progress or arrive, and "
            f"this one needs {nbytes}; at most "
            f"{self.limit_requests} requests and {self.limit_bytes} bytes are held at a time (settings queue_requests "
            "and queue_bytes)"
        )
        if client:
            detail += (
                f"{SHARE} {client_held.requests} requests and {client_held.nbytes + client_held.gathered_bytes} bytes"
            )
        return QueueFull(detail, retry_after_s=self.wait_s(missing_bytes, missing_requests))
