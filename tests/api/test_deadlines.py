"""Requests that nobody waits for are not computed: passed deadlines, on both protocols, and clients that left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import numpy as np
import pytest

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import Connection, Response, head
from lossd.configuration.settings import Settings
from serving import Running, running

LATE = 6


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(compiled=False) as service:
        yield service


def evaluated_behind_a_stopped_worker(
    service: Running, late: Callable[[], Awaitable[None]], extra: bytes = b""
) -> tuple[int, Response]:
    """How many requests were evaluated while ``late`` was queued and dropped; and the first one's answer."""
    engine = service.engine
    worker = engine.workers[0].pid
    before = engine.stats.batch_requests

    async def run() -> Response:
        first = await Connection.open(service.port)
        os.kill(worker, signal.SIGSTOP)
        try:
            await first.send(head("POST", PATH, HEADERS, len(focal())) + focal())
            while engine.in_progress != 1:
                await asyncio.sleep(0.005)
            await late()
        finally:
            os.kill(worker, signal.SIGCONT)
        answer = await first.answer()
        await first.close()
        return answer

    answer = asyncio.run(run())
    service.wait_until(lambda e: e.in_progress == 0)
    assert engine.pool.in_use == 0
    return engine.stats.batch_requests - before, answer


def oip(timeout_us: int) -> bytes:
    rows = np.zeros((4, 3)).tolist()
    inputs = [{"name": name, "shape": [4, 3], "datatype": "FP32", "data": rows} for name in ("prediction", "target")]
    return json.dumps({"inputs": inputs, "parameters": {"timeout": timeout_us}}).encode()


CASES = {
    "X-Request-Timeout-Ms, another recipe": (PATH, HEADERS | {"X-Request-Timeout-Ms": "200"}, focal(65)),
    "X-Request-Timeout-Ms, streamed": (PATH, HEADERS | {"X-Request-Timeout-Ms": "900"}, focal(40_000)),
    "the protocol's timeout": ("/v2/models/mse/infer", {}, oip(200_000)),
    "the header, on the protocol": ("/v2/models/mse/infer", {"X-Request-Timeout-Ms": "200"}, oip(10_000_000)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_work_whose_deadline_has_passed_is_never_computed(service: Running, case) -> None:
    path, headers, body = case

    async def late() -> None:
        connections = [await Connection.open(service.port) for _ in range(LATE)]
        answers = await asyncio.gather(*(c.ask("POST", path, headers, body) for c in connections))
        assert [answer.status for answer in answers] == [504] * LATE
        for connection in connections:
            await connection.close()

    count, answer = evaluated_behind_a_stopped_worker(service, late)
    assert (count, answer.status) == (1, 200)


@pytest.mark.parametrize("rows", [65, 40_000], ids=["gathered", "streamed"])
def test_the_queued_work_of_clients_that_left_is_never_computed(service: Running, rows: int) -> None:
    async def late() -> None:
        connections = [await Connection.open(service.port) for _ in range(LATE)]
        for connection in connections:
            await connection.send(head("POST", PATH, HEADERS, len(focal(rows))) + focal(rows))
        while service.engine.in_progress != 1 + LATE:
            await asyncio.sleep(0.005)
        for connection in connections:
            connection.abort()
        await asyncio.sleep(0.5)

    count, answer = evaluated_behind_a_stopped_worker(service, late)
    assert (count, answer.status) == (1, 200)


def test_a_deadline_longer_than_the_longest_is_cut_to_it() -> None:
    body = focal(40_000)

    async def run(port: int) -> Response:
        connection = await Connection.open(port)
        headers = HEADERS | {"X-Request-Timeout-Ms": "99999999"}
        await connection.send(head("POST", PATH, headers, len(body)) + body[:100_000])
        answer = await asyncio.wait_for(connection.answer(), 10)
        await connection.close()
        return answer

    with running(engine="inline", max_timeout_ms=300) as service:
        assert asyncio.run(run(service.port)).status == 504
    assert Settings().max_timeout_ms >= Settings().request_timeout_ms
