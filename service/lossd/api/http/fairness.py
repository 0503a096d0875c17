"""Whose body is read next. Reading and answering is work too, and there is one of it: the front.

The engine gives clients equal shares of what is queued, but a client with many connections could still keep the front
busy with its own. So while several clients compete, none has more than a window of its requests in progress; the others
wait before their bodies are read, where they hold next to nothing. A client alone waits for nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from lossd.api.http.request import HttpRequest
from lossd_client.errors import QueueFull

__all__ = ["Turns"]

# Eight small requests, which still make a batch; more would make the others wait for this one's reading and answering.
WINDOW_BYTES = 1 << 20
REQUEST_BYTES = 128 << 10

# As long as requests of different clients followed one another within this time, they compete.
COMPETING_S = 1.0


class _Client:
    __slots__ = ("nbytes", "requests", "waiting")

    def __init__(self) -> None:
        self.requests = 0
        self.nbytes = 0
        self.waiting: deque[tuple[HttpRequest, asyncio.Future[None]]] = deque()


class Turns:
    """The turns of one front.

    Args:
        requests_per_key: The setting.
    """

    def __init__(self, requests_per_key: int) -> None:
        self.requests_per_key = requests_per_key
        self._clients: dict[str, _Client] = {}
        self._latest = ""
        self._competing_until = 0.0
        self._taken: dict[HttpRequest, int] = {}

    async def take(self, request: HttpRequest) -> None:
        """Wait until it is this request's turn; :meth:`give` ends it.

        Args:
            request: A request of a client with a name, whose headers have been read.

        Raises:
            QueueFull: Its client has too many in progress.
            DeadlineExceeded: Its turn did not come in time.
        """
        name, now = request.client, request.begin
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client()
        if name != self._latest:
            if self._latest:  # the first of all competes with nobody
                self._competing_until = now + COMPETING_S
            self._latest = name
        if client.requests + len(client.waiting) >= self.requests_per_key:
            raise QueueFull(
                f"{self.requests_per_key} requests of this key are in progress (setting requests_per_key)",
                retry_after_s=1.0,
            )
        if client.waiting or not self._may_go(client, request, now):
            future = asyncio.get_running_loop().create_future()
            client.waiting.append((request, future))
            async with request.in_time("other requests of its key were still ahead of it"):
                await future
        else:
            self._enter(client, request)

    def give(self, request: HttpRequest) -> None:
        """End a request's turn, if it has one."""
        nbytes = self._taken.pop(request, None)
        if nbytes is None:
            return
        client = self._clients[request.client]
        client.requests -= 1
        client.nbytes -= nbytes
        if client.waiting:
            now = time.monotonic()
            while client.waiting and self._may_go(client, client.waiting[0][0], now):
                next_request, future = client.waiting.popleft()
                if not future.done():  # else it was given up
                    self._enter(client, next_request)
                    future.set_result(None)

    def _enter(self, client: _Client, request: HttpRequest) -> None:
        self._taken[request] = nbytes = _size(request)
        client.requests += 1
        client.nbytes += nbytes

    def _may_go(self, client: _Client, request: HttpRequest, now: float) -> bool:
        return not client.requests or now > self._competing_until or client.nbytes + _size(request) <= WINDOW_BYTES


def _size(request: HttpRequest) -> int:
    return (request.length or 0) + REQUEST_BYTES
