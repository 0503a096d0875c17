"""Bodies read directly into their memory: in pieces of any size, with bytes behind them, and clients that leave."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lossd
from chaos.bodies import HEADERS, PATH, focal
from chaos.http import Connection, Response, head
from lossd.api.http.body_buffer import BodyBuffer
from lossd_client.wire import safetensors
from serving import Running, certificate, command, running

STREAM_BYTES = 256 << 10
SIZES = {"gathered": 2_000, "streamed": 40_000}  # rows: 96 kB and 1.9 MB


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(stream_bytes=STREAM_BYTES) as service:
        yield service


def talk(port: int, client: Callable[[Connection], Awaitable[None]]) -> None:
    async def run() -> None:
        connection = await Connection.open(port)
        async with asyncio.timeout(30):
            await client(connection)
        await connection.close()

    asyncio.run(run())


def assert_answers(answer: Response, rows: int, seed: int = 0) -> None:
    """It is the answer to ``focal(rows, seed)``."""
    assert answer.status == 200, answer.body
    inputs, _ = safetensors.decode(focal(rows, seed))
    expected = lossd.evaluate(
        "focal", inputs["prediction"].numpy(), inputs["target"].numpy(), gamma=2.0, outputs=["gradient"]
    )
    tensors, _ = safetensors.decode(answer.body)
    np.testing.assert_allclose(
        tensors["gradient.prediction"].numpy(), expected.gradient, rtol=1e-5, atol=1e-7 / len(expected.gradient)
    )


@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    steps=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    more=st.integers(0, 9),
)
def test_a_buffer_is_filled_in_order_and_not_beyond(sizes: Sequence[int], steps: Sequence[int], more: int) -> None:
    pieces = [bytearray(size) for size in sizes]
    buffer = BodyBuffer(memoryview(piece) for piece in pieces)
    data = bytes(index % 251 + 1 for index in range(sum(sizes) + more))
    at, step = 0, itertools.cycle(steps)
    while buffer.missing:
        assert buffer.missing == sum(sizes) - at
        if at % 2:  # as the loop does it
            size = min(next(step), len(buffer.view))
            buffer.view[:size] = data[at : at + size]
            buffer.advance(size)
            at += size
        else:
            some = data[at : at + next(step)]
            at += len(some) - len(buffer.fill(memoryview(some)))
    assert b"".join(pieces) == data[: sum(sizes)]
    assert buffer.fill(memoryview(data[at:])) == data[at:]
    assert len(buffer.view) == 0


@pytest.mark.parametrize("rows", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("step", [977, 65_536, 10_000_000])
def test_a_body_may_come_in_pieces_of_any_size(service: Running, rows: int, step: int) -> None:
    async def client(connection: Connection) -> None:
        for seed in (0, 1):
            body = focal(rows, seed)
            whole = head("POST", PATH, HEADERS, len(body)) + body
            for at in range(0, len(whole), step):
                await connection.send(whole[at : at + step])
                if not at % 7:
                    await asyncio.sleep(0.001)
            assert_answers(await connection.answer(), rows, seed)

    talk(service.port, client)


@pytest.mark.parametrize("rows", SIZES.values(), ids=SIZES)
def test_what_follows_a_body_is_the_next_request(service: Running, rows: int) -> None:
    """Sent without waiting for an answer: no byte of it may be taken for the body, none of the body for it."""

    async def client(connection: Connection) -> None:
        requests = []
        for seed, row_count in enumerate((rows, 64, rows)):
            body = focal(row_count, seed)
            requests.append(head("POST", PATH, HEADERS, len(body)) + body)
        requests.append(head("GET", "/health/live", {}))
        sending = asyncio.ensure_future(connection.send(b"".join(requests)))
        for seed, row_count in enumerate((rows, 64, rows)):
            assert_answers(await connection.answer(), row_count, seed)
        assert (await connection.answer()).status == 200
        await sending

    talk(service.port, client)


@pytest.mark.parametrize("rows", SIZES.values(), ids=SIZES)
def test_a_client_that_waits_for_leave_gets_it(service: Running, rows: int) -> None:
    async def client(connection: Connection) -> None:
        body = focal(rows)
        await connection.send(head("POST", PATH, HEADERS | {"Expect": "100-continue"}, len(body)))
        assert await connection.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await connection.send(body)
        assert_answers(await connection.answer(), rows)

    talk(service.port, client)


@pytest.mark.parametrize("rows", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("part", [0.0, 0.3, 0.999])
def test_a_client_that_leaves_leaves_nothing(service: Running, rows: int, part: float) -> None:
    body = focal(rows)

    async def client(connection: Connection) -> None:
        await connection.send(head("POST", PATH, HEADERS, len(body)) + body[: int(part * len(body))])
        await asyncio.sleep(0.05)
        connection.abort()

    talk(service.port, client)
    end = time.monotonic() + 10
    while service.engine.pool.in_use or service.engine.budget.held_bytes or service.engine.budget.gathered_bytes:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize("rows", SIZES.values(), ids=SIZES)
def test_what_comes_after_the_deadline_is_dropped_and_changes_nobody_s_memory(service: Running, rows: int) -> None:
    """The slab that it was received into is another request's by then."""
    body = focal(rows)

    async def client(connection: Connection) -> None:
        late = HEADERS | {"X-Request-Timeout-Ms": "100"}
        await connection.send(head("POST", PATH, late, len(body)) + body[: len(body) // 2])
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (504, "close")
        async with asyncio.TaskGroup() as others:
            neighbour = await Connection.open(service.port)
            asking = others.create_task(neighbour.ask("POST", PATH, HEADERS, focal(rows, 1)))
            await connection.send(b"\xff" * (len(body) - len(body) // 2))
            assert_answers(await asking, rows, 1)
            await neighbour.close()
        await connection.ended()

    talk(service.port, client)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_body_is_received_through_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "service")

    async def run(port: int) -> None:
        context = ssl.create_default_context(cafile=str(cert))
        connection = Connection(*await asyncio.open_connection("127.0.0.1", port, ssl=context, limit=1 << 24))
        for seed, rows in enumerate((*SIZES.values(), 64)):
            assert_answers(await connection.ask("POST", PATH, HEADERS, focal(rows, seed)), rows, seed)
        await connection.close()

    options = ("--tls-cert", str(cert), "--tls-key", str(key), "--stream-bytes", str(STREAM_BYTES))
    with command(*options) as (url, _, _):
        asyncio.run(run(int(url.rpartition(":")[2])))
