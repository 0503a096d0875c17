"""Whose body is read next. Reading and answering is work too, and there is one of it: the front.

The engine gives clients equal shares of what is queued, but a client with many connections could still keep the front
busy with its own. So while several clients compete, none has more than a window of its requests in progress; the others
wait before their bodies are read, where they hold next to nothing. A client alone waits for nobody.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from lossd.api.http.exchange import Exchange
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
        self.waiting: deque[tuple[Exchange, asyncio.Future[None]]] = deque()


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

    async def take(self, exchange: Exchange) -> None:
        """Wait until it is this request's turn. :meth:`give` it back when it was answered, if it has ``turn_bytes``.

        Args:
            exchange: A request of a client with a name, whose headers have been read.

        Raises:
            QueueFull: Its client has too many in progress.
            DeadlineExceeded: Its turn did not come in time.
        """
        name, now = exchange.client, exchange.begin
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
        if client.waiting or not self._may_go(client, exchange, now):
            future = asyncio.get_running_loop().create_future()
            client.waiting.append((exchange, future))
            async with exchange.in_time("other requests of its key were still ahead of it"):
                await future
        else:
            _enter(client, exchange)

    def give(self, exchange: Exchange) -> None:
        """End a request's turn."""
        client = self._clients[exchange.client]
        client.requests -= 1
        client.nbytes -= exchange.turn_bytes
        if client.waiting:
            now = time.monotonic()
            while client.waiting and self._may_go(client, client.waiting[0][0], now):
                next_exchange, future = client.waiting.popleft()
                if not future.done():  # else it was given up
                    _enter(client, next_exchange)
                    future.set_result(None)

    def _may_go(self, client: _Client, exchange: Exchange, now: float) -> bool:
        return not client.requests or now > self._competing_until or client.nbytes + _size(exchange) <= WINDOW_BYTES


def _enter(client: _Client, exchange: Exchange) -> None:
    exchange.turn_bytes = _size(exchange)
    client.requests += 1
    client.nbytes += exchange.turn_bytes


def _size(exchange: Exchange) -> int:
    return (exchange.length or 0) + REQUEST_BYTES
