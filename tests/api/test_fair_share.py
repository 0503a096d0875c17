"""Fair shares between clients: requests without a service, on a simulated clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

import pytest

from lossd.api.http import fairness as module
from lossd.api.http.asgi import CLIENT
from lossd.api.http.fairness import REQUEST_BYTES, WINDOW_BYTES, FairShare
from lossd.api.http.request import HttpRequest
from lossd.configuration.settings import Settings
from lossd_client.errors import DeadlineExceeded, QueueFull

WINDOW = WINDOW_BYTES // REQUEST_BYTES


def request_of(client: str, length: int = 0, timeout_s: float = 60.0) -> HttpRequest:
    async def receive():
        raise AssertionError("nothing is read before its turn")

    headers = [(b"content-length", b"%d" % length), (b"x-request-timeout-ms", b"%d" % (timeout_s * 1000))]
    scope = {"method": "POST", "headers": headers, "query_string": b"", CLIENT: client}
    request = HttpRequest(scope, receive, Settings())
    request.read_headers()
    return request


class Crowd:
    """Requests that take their turns; ``reading`` are those whose turn it is, by client."""

    def __init__(self, requests_per_key: int = 1000) -> None:
        self.fair_share = FairShare(requests_per_key)
        self.reading: dict[str, list[HttpRequest]] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, client: str, count: int = 1, **options: float) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.ensure_future(self._take(request_of(client, **options))))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _take(self, request: HttpRequest) -> None:
        await self.fair_share.acquire(request)
        self.reading.setdefault(request.client, []).append(request)

    async def go(self, client: str, count: int = 1) -> None:
        for _ in range(count):
            self.fair_share.release(self.reading[client].pop(0))
        for _ in range(3):
            await asyncio.sleep(0)

    def count(self, client: str) -> int:
        return len(self.reading.get(client, ()))


@pytest.fixture
def run() -> Callable[[Coroutine[None, None, None]], None]:
    return asyncio.run


def test_a_client_alone_waits_for_nobody(run) -> None:
    async def story() -> None:
        crowd = Crowd()
        await crowd.come("greedy")
        crowd.fair_share._competing_until = 0.0  # the first client is not the second
        await crowd.come("greedy", 200)
        assert crowd.count("greedy") == 201

    run(story())


def test_while_clients_compete_none_has_more_than_a_window_and_all_get_their_turn_in_order(run) -> None:
    async def story() -> None:
        crowd = Crowd()
        await crowd.come("modest")
        await crowd.come("greedy", 40)
        assert (crowd.count("modest"), crowd.count("greedy")) == (1, WINDOW)
        await crowd.come("modest")
        assert crowd.count("modest") == 2, "the modest one does not wait behind the greedy one"
        seen: list[HttpRequest] = []
        for _ in range(40 - WINDOW):
            seen.append(crowd.reading["greedy"][0])
            await crowd.go("greedy")
            assert crowd.count("greedy") == WINDOW
        seen += crowd.reading["greedy"]
        assert [e.begin for e in seen] == sorted(e.begin for e in seen)
        assert len({id(e) for e in seen}) == 40

    run(story())


def test_a_request_larger_than_the_window_has_its_turn_when_its_client_has_no_other(run) -> None:
    async def story() -> None:
        crowd = Crowd()
        await crowd.come("modest")
        await crowd.come("greedy", 3, length=100 * WINDOW_BYTES)
        for left in (1, 1, 1):
            assert crowd.count("greedy") == left
            await crowd.go("greedy")
        assert crowd.count("greedy") == 0

    run(story())


def test_when_the_others_are_gone_all_that_wait_go_at_once(run, monkeypatch) -> None:
    monkeypatch.setattr(module, "COMPETING_S", 0.05)

    async def story() -> None:
        crowd = Crowd()
        await crowd.come("modest")
        await crowd.come("greedy", 40)
        await asyncio.sleep(0.06)
        await crowd.go("greedy")
        assert crowd.count("greedy") == 39

    run(story())


@pytest.mark.timed
def test_a_request_whose_turn_does_not_come_in_time_is_given_up_and_holds_up_nobody(run) -> None:
    async def story() -> None:
        crowd = Crowd()
        await crowd.come("modest")
        await crowd.come("greedy", WINDOW)
        await crowd.come("greedy", 2, timeout_s=0.05)
        await crowd.come("greedy")
        begin = time.monotonic()
        for task in crowd.tasks[-3:-1]:
            with pytest.raises(DeadlineExceeded, match="ahead of it"):
                await task
        assert time.monotonic() - begin < 1
        await crowd.go("greedy")
        assert crowd.count("greedy") == WINDOW
        await crowd.go("greedy", WINDOW)
        assert crowd.count("greedy") == 0
        client = crowd.fair_share._clients["greedy"]
        assert (client.requests, client.nbytes, len(client.waiting)) == (0, 0, 0)

    run(story())


def test_a_key_has_so_many_requests_in_progress_and_no_more(run) -> None:
    async def story() -> None:
        crowd = Crowd(requests_per_key=WINDOW + 2)
        await crowd.come("modest")
        await crowd.come("greedy", WINDOW + 2)  # two of them wait
        await crowd.come("greedy")
        with pytest.raises(QueueFull, match="requests_per_key") as refused:
            await crowd.tasks[-1]
        assert refused.value.retry_after_s
        await crowd.come("modest")
        await crowd.go("greedy")
        await crowd.come("greedy")
        assert crowd.count("modest") == 2
        for task in crowd.tasks:
            if not task.done():
                task.cancel()

    run(story())
