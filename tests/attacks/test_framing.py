"""What costs a connection before any route sees a request: heads, trailers, requests one behind the other.

Each is done to a service in this process, whose connections can be looked into; bounds are counts and bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Iterator

import httpx
import pytest

from lossd.api.http import connection as connections
from serving import Running, running

KEY = "a-key-that-nobody-could-ever-guess-0123456789"
GET = b"GET /health/live HTTP/1.1\r\nHost: lossd\r\n"
TEXT = b'{"loss":{"name":"mse"},"inputs":{"prediction":[1.0],"target":[2.0]}}'
POST = b"POST /v1/evaluate HTTP/1.1\r\nHost: lossd\r\nContent-Type: application/json\r\n"
MOST_FIELDS = 128


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline", api_key=KEY, metrics_public=True) as service:
        yield service


@pytest.fixture(scope="module")
def open_service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


def connect(service: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def rest(connection: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    received = b""
    try:
        while chunk := connection.recv(1 << 16):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def answers(service: Running, *pieces: bytes) -> bytes:
    """All that is answered to these pieces, each a write of its own."""
    with connect(service) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(0.01)
        return rest(connection)


def statuses(received: bytes) -> list[int]:
    """Return the statuses of the answers, without interim ones: on a slow machine a probe may send 100 first."""
    return [status for part in received.split(b"HTTP/1.1 ")[1:] if (status := int(part[:3])) >= 200]


# Trailers


@pytest.mark.parametrize("split", [False, True], ids=["one write", "two writes"])
@pytest.mark.parametrize("name", [b"X-API-Key", b"Authorization"])
def test_a_key_in_a_trailer_lets_nobody_in(name: bytes, split: bool, service: Running) -> None:
    value = KEY.encode() if name == b"X-API-Key" else b"Bearer " + KEY.encode()
    head = b"GET /v1/losses HTTP/1.1\r\nHost: lossd\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"0\r\n" + name + b": " + value + b"\r\n\r\n"
    assert statuses(answers(service, *((head, body) if split else (head + body,)))) == [401]
    assert statuses(answers(service, head.replace(b"Conn", name + b": " + value + b"\r\nConn") + b"0\r\n\r\n")) == [200]


def test_a_trailer_is_no_header_to_anything_else(open_service: Running) -> None:
    body = b"%x\r\n%b\r\n0\r\nX-Request-ID: trailer\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n" % (len(TEXT), TEXT)
    received = answers(open_service, POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    assert statuses(received) == [200]
    assert b"trailer" not in received


@pytest.mark.parametrize(
    "unit", [b"a:\r\n", b"abc: " + b"d" * 4000 + b"\r\n", b"e" * 4000], ids=["fields", "long fields", "no end"]
)
def test_trailers_without_end_are_ended_and_hold_little(unit: bytes, open_service: Running) -> None:
    """A request whose body is awaited is answered 431; one that was answered already is closed."""
    tracemalloc.start()
    try:
        for head in (POST, GET):
            with connect(open_service) as connection:
                connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
                sent = 0
                try:
                    while sent < 16 << 20:
                        sent += connection.send(unit * (65536 // len(unit)))
                except (BrokenPipeError, ConnectionResetError):
                    pass
                received = rest(connection)
            assert statuses(received) in ([431], []) if head is POST else statuses(received) in ([200], [431], [])
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_trailers_of_more_than_the_limit_are_answered_431(open_service: Running) -> None:
    for trailers in (b"a:\r\n" * (MOST_FIELDS + 1), b"a: " + b"b" * (70 << 10) + b"\r\n"):
        received = answers(open_service, POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", trailers + b"\r\n")
        assert statuses(received) == [431]
        assert json.loads(received.partition(b"\r\n\r\n")[2])["type"] == "/problems/head-too-large"


# Heads


@pytest.mark.parametrize("writes", [1, 4])
@pytest.mark.parametrize("before", [b"", GET + b"\r\n"], ids=["first", "second"])
def test_a_head_of_100_kilobytes_is_answered_431_however_it_is_written(
    writes: int, before: bytes, open_service: Running
) -> None:
    head = GET + b"".join(b"X-%d: %b\r\n" % (i, b"a" * 10_000) for i in range(10)) + b"\r\n"
    step = -(-len(head) // writes)
    pieces = [head[at : at + step] for at in range(0, len(head), step)]
    assert statuses(answers(open_service, before + pieces[0], *pieces[1:])) == [*([200] if before else []), 431]


@pytest.mark.parametrize(("size", "status"), [(64_000, 200), (65_000, 200), (66_500, 431)])
@pytest.mark.parametrize("writes", [1, 7])
def test_heads_are_measured_by_their_own_bytes(size: int, status: int, writes: int, open_service: Running) -> None:
    head = GET + b"Connection: close\r\nX-Long: " + b"a" * (size - len(GET) - 31) + b"\r\n\r\n"
    assert len(head) == size
    step = -(-len(head) // writes)
    assert statuses(answers(open_service, *(head[at : at + step] for at in range(0, len(head), step)))) == [status]


@pytest.mark.parametrize("size", [70_000, 300_000])
def test_an_address_that_is_too_long_is_answered_414(size: int, open_service: Running) -> None:
    received = answers(open_service, b"GET /v1/losses?" + b"a" * size + b" HTTP/1.1\r\nHost: lossd\r\n\r\n")
    assert statuses(received) == [414]


def test_fields_are_counted(open_service: Running) -> None:
    head = GET + b"Connection: close\r\n"
    assert statuses(answers(open_service, head + b"a: b\r\n" * (MOST_FIELDS - 2) + b"\r\n")) == [200]
    assert statuses(answers(open_service, head + b"a: b\r\n" * (MOST_FIELDS - 1) + b"\r\n")) == [431]


def test_heads_of_nothing_but_fields_hold_little(open_service: Running) -> None:
    tracemalloc.start()
    try:
        crowd = [connect(open_service) for _ in range(20)]
        for connection in crowd:
            connection.sendall(GET + b"a:\r\n" * 15_900)
        assert [connection.recv(12) for connection in crowd] == [b"HTTP/1.1 431"] * 20
        assert tracemalloc.get_traced_memory()[1] < 20 * (512 << 10)
        for connection in crowd:
            connection.close()
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("hosts", "status"), [(b"", 400), (b"Host: a\r\nHost: a\r\n", 400), (b"Host: a\r\nhOST: b\r\n", 400)]
)
def test_a_request_names_one_host(hosts: bytes, status: int, open_service: Running) -> None:
    received = answers(open_service, b"GET /health/live HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n")
    assert statuses(received) == [status]
    assert statuses(answers(open_service, b"GET /health/live HTTP/1.0\r\n\r\n")) == [200]


# One behind the other


def test_a_thousand_requests_at_once_are_answered_in_order(open_service: Running) -> None:
    count = 1000
    requests = b"".join(b"GET /v1/none-%d HTTP/1.1\r\nHost: lossd\r\n\r\n" % i for i in range(count))
    with connect(open_service) as connection:
        connection.settimeout(120)
        sender = threading.Thread(target=connection.sendall, args=(requests,))
        sender.start()
        received = bytearray()
        while received.count(b'"detail"') < count:
            chunk = connection.recv(1 << 20)
            assert chunk
            received += chunk
        sender.join()
    assert [int(number) for number in re.findall(rb"/v1/none-(\d+)", received)] == list(range(count))


def test_who_sends_requests_and_reads_nothing_has_few_of_them_parsed(
    open_service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = [0]
    parse = connections.Http._parse

    def measured(self: connections.Http, data: bytes) -> None:
        parse(self, data)
        most[0] = max(most[0], len(self.pipeline))

    monkeypatch.setattr(connections.Http, "_parse", measured)
    with connect(open_service) as connection:
        connection.setblocking(False)
        data = (GET + b"\r\n") * 5000
        for _ in range(40):
            try:
                data = data[connection.send(data) :]
            except BlockingIOError:
                time.sleep(0.02)
            if not data:
                break
        until = time.monotonic() + 30
        while not most[0] and time.monotonic() < until:
            time.sleep(0.02)
    assert 0 < most[0] <= 150


@pytest.mark.parametrize("packets", [1, 2])
def test_a_body_and_the_next_head_in_one_read_are_two_requests(packets: int, open_service: Running) -> None:
    numbers = b",".join(b"0.5" for _ in range(15_000))
    text = b'{"loss":{"name":"mse"},"outputs":["loss"],"inputs":{"prediction":[%b],"target":[%b]}}' % (numbers, numbers)
    assert len(text) > 110_000
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(text) + text + GET + b"Connection: close\r\n\r\n"
    cut = len(whole) - 20 if packets == 2 else len(whole)
    assert statuses(answers(open_service, whole[:cut], whole[cut:])) == [200, 200]


@pytest.mark.parametrize("broken", [b"\x16\x03 hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_broken_behind_a_good_request_leaves_its_answer(broken: bytes, open_service: Running) -> None:
    good = POST + b"Content-Length: %d\r\n\r\n" % len(TEXT) + TEXT
    for first in (good, GET + b"\r\n"):
        received = answers(open_service, first * 3 + broken)
        assert statuses(received) == [200, 200, 200, 400]
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"
    assert statuses(answers(open_service, good + chunked)) == [200, 400]


def test_who_has_sent_all_and_closes_that_side_is_answered(open_service: Running) -> None:
    numbers = b",".join(b"0.5" for _ in range(15_000))
    text = b'{"loss":{"name":"mse"},"inputs":{"prediction":[%b],"target":[%b]}}' % (numbers, numbers)
    large = POST + b"Content-Length: %d\r\n\r\n" % len(text) + text
    for requests, expected in ((GET + b"\r\n", [200]), ((GET + b"\r\n") * 50, [200] * 50), (large * 2, [200] * 2)):
        with connect(open_service) as connection:
            connection.sendall(requests)
            connection.shutdown(socket.SHUT_WR)
            assert statuses(rest(connection)) == expected
    with connect(open_service) as connection:
        connection.sendall(large[:-10])
        connection.shutdown(socket.SHUT_WR)
        assert rest(connection) == b""


def test_who_leaves_behind_several_requests_is_not_waited_for() -> None:
    """The one that is answered is not the one that was read last."""
    large = POST + b"Content-Length: %d\r\n\r\n" % len(TEXT) + TEXT
    with running(compiled=False) as service, connect(service) as other, connect(service) as leaving:
        pid = service.engine.vitals[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            other.sendall(large)
            service.wait_until(lambda engine: engine.in_progress == 1)
            leaving.sendall(large * 3)
            service.wait_until(lambda engine: engine.in_progress == 2)
            leaving.close()
            service.wait_until(lambda engine: engine.in_progress == 1, timeout_s=10)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert other.recv(12) == b"HTTP/1.1 200"


def test_who_resets_behind_several_requests_has_no_more_of_them_answered(
    open_service: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read while requests wait, so that only a write would fail."""
    answered = [0]
    complete = connections.Http.on_response_complete

    def counted(self: connections.Http) -> None:
        answered[0] += 1
        if answered[0] == 1:
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            leaving.close()
        complete(self)

    monkeypatch.setattr(connections.Http, "on_response_complete", counted)
    with connect(open_service) as other:
        leaving = connect(open_service)
        leaving.sendall((GET + b"\r\n") * 20)
        until = time.monotonic() + 20
        while not answered[0] and time.monotonic() < until:
            time.sleep(0.01)
        other.sendall(GET + b"\r\n")
        assert other.recv(12) == b"HTTP/1.1 200"
        while answered[0] < 2 and time.monotonic() < until:  # sent, but not counted yet
            time.sleep(0.01)
    assert answered[0] == 2


# Refusals


@pytest.mark.parametrize("path", [b"/v1/losses", b"/v2/models/mse"])
@pytest.mark.parametrize(
    ("fields", "status", "slug"),
    [
        (b"X: " + b"a" * 70_000 + b"\r\n", 431, "head-too-large"),
        (b"Host: b\r\n", 400, "malformed-request"),
        (b"broken\r\n", 400, "malformed-request"),
    ],
)
def test_a_refusal_before_any_route_is_an_answer_like_others(
    path: bytes, fields: bytes, status: int, slug: str, service: Running
) -> None:
    def counted() -> float:
        lines = httpx.get(f"{service.url}/metrics").text.splitlines()
        return sum(
            float(line.split()[-1]) for line in lines if line.startswith("lossd_requests_total") and slug in line
        )

    before = counted()
    received = answers(service, b"GET " + path + b" HTTP/1.1\r\nX-Request-ID: mine\r\nHost: a\r\n" + fields + b"\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    assert statuses(received) == [status]
    headers = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
    assert headers[b"x-request-id"] == b"mine"
    assert headers[b"date"].endswith(b"gmt")
    assert headers[b"connection"] == b"close"
    if path.startswith(b"/v2"):
        assert headers[b"content-type"] == b"application/json"
        assert json.loads(body).keys() == {"error"}
    else:
        assert headers[b"content-type"] == b"application/problem+json"
        document = json.loads(body)
        assert (document["type"], document["status"], document["request_id"]) == (f"/problems/{slug}", status, "mine")
    assert counted() == before + 1


def test_a_refused_client_that_goes_on_sending_reads_its_answer(open_service: Running) -> None:
    with connect(open_service) as connection:
        sender = threading.Thread(target=_send_all, args=(connection, GET + b"X: " + b"a" * (4 << 20) + b"\r\n\r\n"))
        sender.start()
        assert rest(connection).startswith(b"HTTP/1.1 431 ")
        sender.join()


def _send_all(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)
