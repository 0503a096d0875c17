"""Fair shares of the front between clients: whose body is read next.

The engine gives clients equal shares of the workers. A client with many connections could still keep the front busy
with reading and answering. While several clients compete, each has therefore at most a window of requests in progress.
Its other requests wait before their bodies are read, when they hold little memory. A client alone does not wait.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from lossd.api.http.request import HttpRequest
from lossd_client.errors import QueueFull

__all__ = ["FairShare"]

# The window is eight small requests, enough for a batch. With more, other clients would wait longer for the front.
WINDOW_BYTES = 1 << 20
REQUEST_BYTES = 128 << 10

# Clients compete if requests of different clients followed one another within this time.
COMPETING_S = 1.0


class _Client:
    __slots__ = ("nbytes", "requests", "waiting")

    def __init__(self) -> None:
        self.requests = 0
        self.nbytes = 0
        self.waiting: deque[tuple[HttpRequest, asyncio.Future[None]]] = deque()


class FairShare:
    """The windows of one front's clients.

    Args:
        requests_per_key: The setting of this name.
    """

    def __init__(self, requests_per_key: int) -> None:
        self.requests_per_key = requests_per_key
        self._clients: dict[str, _Client] = {}
        self._latest = ""
        self._competing_until = 0.0
        self._acquired: dict[HttpRequest, int] = {}

    async def acquire(self, request: HttpRequest) -> None:
        """Wait until the request fits its client's window; :meth:`release` removes it.

        Args:
            request: A request of a client with a name; its headers have been read.

        Raises:
            QueueFull: The client has too many requests in progress.
            DeadlineExceeded: The request did not fit before its deadline.
        """
        if not self.admits(request):
            client, future = self._clients[request.client], asyncio.get_running_loop().create_future()
            client.waiting.append((request, future))
            async with request.in_time("other requests of its key were still ahead of it"):
                await future

    def admits(self, request: HttpRequest) -> bool:
        """Return whether the request fits its client's window now, and count it if it does.

        Raises:
            QueueFull: The client has too many requests in progress.
        """
        name, now = request.client, request.begin
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client()
        if name != self._latest:
            if self._latest:  # the first client competes with nobody
                self._competing_until = now + COMPETING_S
            self._latest = name
        if client.requests + len(client.waiting) >= self.requests_per_key:
            raise QueueFull(
                f"{self.requests_per_key} requests of this key are in progress (setting requests_per_key)",
                retry_after_s=1.0,
            )
        if client.waiting or not self._fits(client, request, now):
            return False
        self._admit(client, request)
        return True

    def release(self, request: HttpRequest) -> None:
        """Remove a request from its client's window, if it is there, and admit requests that wait."""
        nbytes = self._acquired.pop(request, None)
        if nbytes is None:
            return
        client = self._clients[request.client]
        client.requests -= 1
        client.nbytes -= nbytes
        if client.waiting:
            now = time.monotonic()
            while client.waiting and self._fits(client, client.waiting[0][0], now):
                next_request, future = client.waiting.popleft()
                if not future.done():  # a request that was given up has no room
                    self._admit(client, next_request)
                    future.set_result(None)

    def _admit(self, client: _Client, request: HttpRequest) -> None:
        self._acquired[request] = nbytes = _size(request)
        client.requests += 1
        client.nbytes += nbytes

    def _fits(self, client: _Client, request: HttpRequest, now: float) -> bool:
        return not client.requests or now > self._competing_until or client.nbytes + _size(request) <= WINDOW_BYTES


def _size(request: HttpRequest) -> int:
    return (request.length or 0) + REQUEST_BYTES
