"""Clients that are slow with the head, the body or the answer, and clients with too many connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import BrokenError, Connection, Response, head
from serving import Running, running

IDLE_S = 0.6


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(
        engine="inline", idle_timeout_ms=round(IDLE_S * 1000), keep_alive_timeout_ms=1000, stream_bytes=1 << 20
    ) as service:
        yield service


def talk(port: int, client: Callable[[Connection], Awaitable[Response | None]], **options: int) -> tuple[float, object]:
    """How long the client was served, and what it was answered."""

    async def run() -> tuple[float, object]:
        connection = await Connection.open(port, **options)
        begin = time.monotonic()
        try:
            async with asyncio.timeout(20):
                answer = await client(connection)
        except BrokenError as error:
            answer = error
        took_s = time.monotonic() - begin
        await connection.close()
        return took_s, answer

    return asyncio.run(run())


async def trickle(connection: Connection, data: bytes, every_s: float = 0.05) -> None:
    """Send byte by byte, until the other end has had enough."""
    for byte in data:
        try:
            await connection.send(bytes([byte]))
        except BrokenError:
            return
        await asyncio.sleep(every_s)


def nothing_is_held(service: Running) -> bool:
    engine = service.engine
    service.wait_until(lambda e: e.in_progress == 0)
    return (engine.pool.in_use, engine.budget.held_bytes) == (0, 0)


@pytest.mark.timed
def test_a_head_that_never_ends_is_answered_408(service: Running) -> None:
    async def client(connection: Connection) -> Response:
        sending = asyncio.ensure_future(trickle(connection, b"GET /health/live HTTP/1.1\r\n" + b"X-A: b\r\n" * 99))
        try:
            return await connection.answer()
        finally:
            sending.cancel()

    took_s, answer = talk(service.port, client)
    assert isinstance(answer, Response)
    assert (answer.status, answer.headers["connection"]) == (408, "close")
    assert answer.headers["content-type"] == "application/problem+json"
    assert IDLE_S * 0.7 < took_s < IDLE_S * 4


@pytest.mark.parametrize("piece", [b"", b"\r\n"], ids=["nothing", "empty lines"])
@pytest.mark.timed
def test_a_connection_on_which_no_request_begins_is_ended(service: Running, piece: bytes) -> None:
    async def client(connection: Connection) -> None:
        sending = asyncio.ensure_future(trickle(connection, piece * 200))
        await connection.ended()
        sending.cancel()

    took_s, _ = talk(service.port, client)
    assert IDLE_S * 0.7 < took_s < IDLE_S * 4


@pytest.mark.timed
def test_empty_lines_do_not_keep_a_used_connection_alive(service: Running) -> None:
    async def client(connection: Connection) -> None:
        assert (await connection.ask("GET", "/health/live", {})).status == 200
        sending = asyncio.ensure_future(trickle(connection, b"\r\n" * 200))
        await connection.ended()
        sending.cancel()

    took_s, _ = talk(service.port, client)
    assert took_s < IDLE_S * 5


@pytest.mark.timed
def test_between_requests_a_connection_may_rest_for_the_keep_alive_time(service: Running) -> None:
    async def client(connection: Connection) -> None:
        for _ in range(2):
            assert (await connection.ask("GET", "/health/live", {})).status == 200
            await asyncio.sleep(IDLE_S * 1.2)
        assert (await connection.ask("GET", "/health/live", {})).status == 200
        await connection.ended()

    took_s, _ = talk(service.port, client)
    assert 0.9 < took_s - 2.4 * IDLE_S < 4


@pytest.mark.parametrize("rows", [64, 40_000], ids=["gathered", "streamed"])
@pytest.mark.parametrize("part", [0.0, 0.5], ids=["before its first byte", "in the middle"])
class TestABodyThatStops:
    @pytest.mark.timed
    def test_is_answered_408(self, service: Running, rows: int, part: float) -> None:
        body = focal(rows)

        async def client(connection: Connection) -> Response:
            await connection.send(head("POST", PATH, HEADERS, len(body)) + body[: int(part * len(body))])
            return await connection.answer()

        took_s, answer = talk(service.port, client)
        assert isinstance(answer, Response)
        assert answer.status == 408
        assert IDLE_S * 0.7 < took_s < IDLE_S * 4
        assert nothing_is_held(service)

    @pytest.mark.timed
    def test_is_answered_504_where_the_deadline_comes_first(self, service: Running, rows: int, part: float) -> None:
        body = focal(rows)

        async def client(connection: Connection) -> Response:
            headers = HEADERS | {"X-Request-Timeout-Ms": "150"}
            await connection.send(head("POST", PATH, headers, len(body)) + body[: int(part * len(body))])
            return await connection.answer()

        took_s, answer = talk(service.port, client)
        assert isinstance(answer, Response)
        assert (answer.status, answer.problem) == (504, "deadline-exceeded")
        assert 0.1 < took_s < IDLE_S
        assert nothing_is_held(service)


@pytest.mark.parametrize("rows", [64, 40_000], ids=["gathered", "streamed"])
@pytest.mark.timed
def test_a_body_that_trickles_is_answered_504_at_its_deadline(service: Running, rows: int) -> None:
    body = focal(rows)

    async def client(connection: Connection) -> Response:
        await connection.send(head("POST", PATH, HEADERS | {"X-Request-Timeout-Ms": "1500"}, len(body)))
        sending = asyncio.ensure_future(trickle(connection, body))
        try:
            return await connection.answer()
        finally:
            sending.cancel()

    took_s, answer = talk(service.port, client)
    assert isinstance(answer, Response)
    assert answer.status == 504
    assert 1.4 < took_s < 5
    assert nothing_is_held(service)


@pytest.mark.timed
def test_a_client_that_is_slow_but_steady_is_served(service: Running) -> None:
    body = focal(40_000)
    pieces = 6

    async def client(connection: Connection) -> Response:
        whole = head("POST", PATH, HEADERS, len(body)) + body
        step = -(-len(whole) // pieces)
        for first in range(0, len(whole), step):
            await connection.send(whole[first : first + step])
            await asyncio.sleep(IDLE_S / 2)
        return await connection.answer()

    took_s, answer = talk(service.port, client)
    assert isinstance(answer, Response)
    assert answer.status == 200
    assert took_s > IDLE_S * 2


@pytest.mark.timed
def test_an_answer_that_is_not_read_holds_its_memory_no_longer_than_the_idle_time(service: Running) -> None:
    rows = 400_000  # 16 MB of gradient, more than the system's buffers take
    body = focal(rows)

    async def client(connection: Connection) -> None:
        await connection.send(head("POST", PATH, HEADERS, len(body)) + body)
        while not service.engine.stats.batches:
            await asyncio.sleep(0.01)
        begin = time.monotonic()
        while service.engine.pool.in_use:
            await asyncio.sleep(0.02)
        assert IDLE_S * 0.5 < time.monotonic() - begin < IDLE_S * 6
        with pytest.raises(BrokenError):
            await connection.answer()

    service.engine.stats.batches = 0
    talk(service.port, client, receive_bytes=4096)
    assert nothing_is_held(service)


@pytest.mark.timed
def test_an_answer_that_is_read_slowly_but_steadily_arrives_whole(service: Running) -> None:
    body = focal(100_000)  # 4 MB of gradient

    async def client(connection: Connection) -> int:
        await connection.send(head("POST", PATH, HEADERS, len(body)) + body)
        text = await connection.reader.readuntil(b"\r\n\r\n")
        length = int(text.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        read = 0
        begin = time.monotonic()
        while read < length:
            read += len(await connection.reader.readexactly(min(length - read, 64 << 10)))
            await asyncio.sleep(IDLE_S / 20)
        assert time.monotonic() - begin > IDLE_S * 2
        return read

    _, read = talk(service.port, client, receive_bytes=64 << 10)
    assert isinstance(read, int)
    assert read > 100_000 * 40
    assert nothing_is_held(service)


def test_answers_that_are_never_read_end_the_connection(service: Running) -> None:
    """Thousands of small answers to one who only asks: what the system does not buffer, the service does not either."""

    async def client(connection: Connection) -> None:
        while True:
            await asyncio.wait_for(connection.send(head("GET", "/openapi.json", {}) * 50), 10)

    took_s, outcome = talk(service.port, client, receive_bytes=4096)
    assert isinstance(outcome, BrokenError)
    assert took_s < 15


def test_a_head_that_is_too_long_is_answered_431(service: Running) -> None:
    async def client(connection: Connection) -> Response:
        await connection.send(b"GET /health/live HTTP/1.1\r\n")
        answer = asyncio.ensure_future(connection.answer())
        while not answer.done():
            try:
                await connection.send(b"X-Long: " + b"a" * 8192 + b"\r\n")
            except BrokenError:
                break
            await asyncio.sleep(0.001)
        return await answer

    _, answer = talk(service.port, client)
    assert isinstance(answer, Response)
    assert answer.status == 431


def test_what_is_no_http_is_answered_400(service: Running) -> None:
    async def client(connection: Connection) -> Response:
        await connection.send(b"\x16\x03\x01 hello\r\n\r\n")
        return await connection.answer()

    _, answer = talk(service.port, client)
    assert isinstance(answer, Response)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")


@pytest.mark.parametrize(("path", "field"), [(PATH, "detail"), ("/v2/models/mse/infer", "error")])
def test_one_connection_too_many_is_told_so_and_the_others_go_on(path: str, field: str) -> None:
    async def run(port: int) -> None:
        open_connections = [await Connection.open(port) for _ in range(3)]
        for connection in open_connections:
            assert (await connection.ask("POST", PATH, HEADERS, focal())).status == 200
        surplus = await Connection.open(port)
        answer = await surplus.ask("POST", path, HEADERS, focal())
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        assert int(answer.headers["retry-after"]) >= 1
        assert b"max_connections" in answer.body
        assert field.encode() in answer.body
        await surplus.ended()
        for connection in open_connections:
            assert (await connection.ask("POST", PATH, HEADERS, focal())).status == 200
        await open_connections.pop().close()
        await asyncio.sleep(0.1)
        again = await Connection.open(port)
        assert (await again.ask("POST", PATH, HEADERS, focal())).status == 200
        crowd = [await Connection.open(port) for _ in range(8)]
        await asyncio.wait_for(crowd[-1].ended(), 5)  # far too many are not even answered
        for connection in [*open_connections, surplus, again, *crowd]:
            await connection.close()

    with running(engine="inline", max_connections=3) as service:
        asyncio.run(run(service.port))
