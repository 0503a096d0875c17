"""Attacks on HTTP: request smuggling, response splitting, path traversal."""

from __future__ import annotations

import json
import socket

import pytest

from serving import Running

BODY = b'{"loss":{"name":"mse"},"inputs":{"prediction":[1.0],"target":[2.0]}}'
HEAD = b"POST /v1/evaluate HTTP/1.1\r\nHost: lossd\r\nContent-Type: application/json\r\n"
LAST = b"Connection: close\r\n"
HIDDEN = b"GET /v1/losses/hidden HTTP/1.1\r\nHost: lossd\r\nConnection: close\r\n\r\n"


def answers(service: Running, request: bytes) -> bytes:
    """All that comes back for these bytes until the connection ends."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n" % len(BODY),
        b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n" % len(BODY),
        b"Content-Length: %d\r\nContent-Length: %d\r\n" % (len(BODY), len(BODY) + len(HIDDEN)),
        b"Content-Length: %d\r\nContent-Length: %d\r\n" % (len(BODY), len(BODY)),
        b"Content-Length: +%d\r\n" % len(BODY),
        b"Content-Length: -1\r\n",
        b"Content-Length: 0x10\r\n",
        b"Content-Length: 99999999999999999999999999\r\n",
        b"Content-Length: %d, %d\r\n" % (len(BODY), len(BODY)),
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Content-Length: %d\r\n folded\r\n" % len(BODY),
        b"Content-Length: %d\nTransfer-Encoding: chunked\r\n" % len(BODY),
    ],
)
def test_a_body_whose_end_is_a_matter_of_opinion_is_refused_and_nothing_behind_it_is_read(
    framing: bytes, service: Running
) -> None:
    received = answers(service, HEAD + framing + b"\r\n" + BODY + HIDDEN)
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in received.lower()
    assert b"hidden" not in received


def test_requests_one_behind_the_other_are_two_where_nothing_is_in_doubt(service: Running) -> None:
    received = answers(service, HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY + HIDDEN)
    assert received.count(b"HTTP/1.1 200 ") == 1
    assert received.count(b"HTTP/1.1 404 ") == 1


@pytest.mark.parametrize(
    "chunk", [b"5;a=b\r\n", b"-5\r\n", b"0x5\r\n", b"fffffffffffffffff\r\n", b" 5\r\n", b"\r\n", b"5\n"]
)
def test_a_chunk_of_a_strange_size_ends_the_connection_or_is_read_as_every_server_reads_it(
    chunk: bytes, service: Running
) -> None:
    received = answers(service, HEAD + LAST + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"{}   \r\n0\r\n\r\n")
    extension_only = chunk.startswith(b"5;")  # which the standard has
    assert received.startswith(b"HTTP/1.1 4")
    assert (b"this is not HTTP" in received) is not extension_only


@pytest.mark.parametrize(
    "request_id",
    [b"a\r\nSet-Cookie: x=1", b"a\nSet-Cookie: x=1", b"a\rSet-Cookie: x=1", b"a\0b", b"a\r\n\r\n<html>"],
)
@pytest.mark.parametrize("path", [b"/v1/evaluate", b"/v1/none", b"/v2/models/none"])
def test_a_request_id_cannot_write_headers_of_the_answer(request_id: bytes, path: bytes, service: Running) -> None:
    request = (
        b"GET " + path + b" HTTP/1.1\r\nHost: lossd\r\nX-Request-ID: " + request_id + b"\r\nConnection: close\r\n\r\n"
    )
    head = answers(service, request).partition(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in [line.partition(b":")[0] for line in head.splitlines()]


@pytest.mark.parametrize(
    "request_id", [b"\x9b31m", b"\x85line", b"\xc3\xa9", b"a\tb", b"\xff"], ids=["CSI", "NEL", "UTF-8", "tab", "byte"]
)
@pytest.mark.parametrize("path", [b"/v1/evaluate", b"/v1/none", b"/v2/models/none", b"/health/live"])
def test_a_request_id_that_a_terminal_could_obey_is_replaced(request_id: bytes, path: bytes, service: Running) -> None:
    request = (
        b"GET " + path + b" HTTP/1.1\r\nHost: lossd\r\nX-Request-ID: " + request_id + b"\r\nConnection: close\r\n\r\n"
    )
    head, _, body = answers(service, request).partition(b"\r\n\r\n")
    (identity,) = (line.partition(b": ")[2] for line in head.splitlines() if line.lower().startswith(b"x-request-id"))
    assert identity.decode("ascii").isprintable()
    assert request_id not in head
    assert json.loads(body).get("request_id", identity.decode()) == identity.decode()


@pytest.mark.parametrize(
    "path",
    [
        "/docs/static/../../__init__.py",
        "/docs/static/..%2f..%2f__init__.py",
        "/docs/static/%2e%2e/%2e%2e/__init__.py",
        "/docs/static//etc/passwd",
        "/docs/static/%00",
        "/docs/static/" + "a" * 5000,
        "/explorer/../../app.py",
        "/explorer/..%2f..%2fapp.py",
        "/v1/losses/..%2f..%2f..%2fetc%2fpasswd",
        "/v1/losses/mse/curve.svg%2f..%2f..",
        "/v2/models/..%2f..%2fconfig",
        "/v2/models/%ff%00%0d%0aSet-Cookie:%20a/ready",
        "/problems/..%2f..%2fapp.py",
        "//etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
    ],
)
def test_a_path_leads_to_nothing_but_what_is_served(path: str, service: Running) -> None:
    received = answers(service, f"GET {path} HTTP/1.1\r\nHost: lossd\r\nConnection: close\r\n\r\n".encode())
    assert received.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 "))
    assert b"root:" not in received
    assert b"from __future__" not in received
    assert b"set-cookie" not in received.partition(b"\r\n\r\n")[0].lower()


def test_a_path_of_bytes_that_are_no_text_is_no_http(service: Running) -> None:
    received = answers(service, b"GET /v2/\xff\xfe HTTP/1.1\r\nHost: lossd\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "query", [b"request=%ff%fe", b"request=%00", b"request", b"request={}&request={}", b"&&&===", b"\x80"]
)
def test_a_query_is_read_or_refused(query: bytes, service: Running) -> None:
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    body = len(header).to_bytes(8, "little") + header + b"\0"
    head = b"POST /v1/evaluate?" + query + b" HTTP/1.1\r\nHost: lossd\r\nContent-Type: application/vnd.safetensors\r\n"
    received = answers(service, head + LAST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    assert received.startswith(b"HTTP/1.1 4")
