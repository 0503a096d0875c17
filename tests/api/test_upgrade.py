"""Clients that offer another protocol, as Java's offers HTTP/2, are answered in HTTP/1.1."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httptools
import pytest

from serving import Running, running

OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
BODY = b'{"loss":{"name":"mse"},"inputs":{"prediction":[1.0,2.0],"target":[1.0,4.0]},"outputs":["loss"]}'
HEAD = b"POST /v1/evaluate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
WHOLE = HEAD + OFFER + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = HEAD + OFFER + b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (
    BODY[:5], len(BODY) - 5, BODY[5:],
)  # fmt: skip
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: here\r\n%b\r\n"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


class Answers:
    """What comes back over one connection."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.bodies: list[bytes] = []
        self.complete = 0
        self.parser = httptools.HttpResponseParser(self)

    def on_headers_complete(self) -> None:
        self.statuses.append(self.parser.get_status_code())
        self.bodies.append(b"")

    def on_body(self, body: bytes) -> None:
        self.bodies[-1] += body

    def on_message_complete(self) -> None:
        self.complete += 1


def exchange(port: int, pieces: list[bytes], count: int) -> Answers:
    """Send each piece in a packet of its own; wait for so many answers."""
    answers = Answers()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        while answers.complete < count:
            received = connection.recv(65536)
            assert received, f"hung up after {answers.complete} of {count} answers"
            answers.parser.feed_data(received)
    return answers


@pytest.mark.parametrize("request_", [WHOLE, CHUNKED], ids=["whole", "chunked"])
@pytest.mark.parametrize("packet_bytes", [1 << 20, 7, 1])
def test_the_body_behind_an_offer_is_read(request_: bytes, packet_bytes: int, service: Running) -> None:
    pieces = [request_[at : at + packet_bytes] for at in range(0, len(request_), packet_bytes)]
    answers = exchange(service.port, pieces, 1)
    assert answers.statuses == [200]
    assert b'"loss":2.0' in answers.bodies[0]


def test_the_connection_goes_on_behind_it(service: Running) -> None:
    answers = exchange(service.port, [WHOLE + CHUNKED + HEALTH % OFFER + WHOLE + HEALTH % b""], 5)
    assert answers.statuses == [200] * 5
    assert [b'"loss":2.0' in body for body in answers.bodies] == [True, True, False, True, False]


def test_a_large_body_streams_behind_an_offer(service: Running) -> None:
    count = service.settings.stream_bytes // 8 + 1
    header = b'{"prediction":{"dtype":"F64","shape":[%d],"data_offsets":[0,%d]},' % (count, 8 * count)
    header += b'"target":{"dtype":"F64","shape":[%d],"data_offsets":[%d,%d]}}' % (count, 8 * count, 16 * count)
    body = len(header).to_bytes(8, "little") + header + bytes(16 * count)
    head = b'POST /v1/evaluate?request={"loss":{"name":"mse"}} HTTP/1.1\r\nHost: here\r\n' + OFFER
    head += b"Accept: application/json\r\nContent-Type: application/vnd.safetensors\r\nContent-Length: %d\r\n\r\n"
    answers = exchange(service.port, [head % len(body), body], 1)
    assert answers.statuses == [200]
    assert b'"loss":0.0' in answers.bodies[0]


@pytest.mark.parametrize("request_", [b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n", HEALTH % b"Upgrade h2c\r\n"])
def test_what_is_no_request_is_refused(request_: bytes, service: Running) -> None:
    (status,) = exchange(service.port, [request_], 1).statuses
    assert 400 <= status < 500
