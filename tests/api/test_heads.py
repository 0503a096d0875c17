"""HEAD, as load balancers and ``wget --spider`` send it: the head of GET without its body."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from serving import Running, openapi, running

PATHS = [
    re.sub(r"\{(\w+)\}", lambda name: {"version": "1"}.get(name[1], "mse"), path)
    for path, methods in openapi()["paths"].items()
    if "get" in methods and "/trace" not in path
]
CHANGING = (b"date", b"x-request-id", b"server-timing")


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(engine="inline") as service:
        yield service


def answer(service: Running, method: str, path: str, version: str = "1.1") -> tuple[list[bytes], bytes]:
    """The head's lines, those that change from request to request left out, and the body."""
    request = f"{method} {path} HTTP/{version}\r\nHost: lossd\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.sendall(request)
        received = b""
        while chunk := connection.recv(1 << 16):
            received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    return [line for line in head.lower().split(b"\r\n") if not line.startswith(CHANGING)], body


@pytest.mark.parametrize("path", [*PATHS, "/", "/docs", "/redoc", "/problems", "/openapi.json", "/v1/none", "/v2/none"])
def test_is_get_without_its_body(path: str, service: Running) -> None:
    if path == "/metrics":
        pytest.skip("its length changes from request to request")
    head, body = answer(service, "GET", path)
    assert answer(service, "HEAD", path) == (head, b"")
    assert body


@pytest.mark.parametrize("path", ["/health/live", "/metrics"])
def test_of_http_1_0_is_answered(path: str, service: Running) -> None:
    head, body = answer(service, "HEAD", path, "1.0")
    assert (head[0].split()[1], body) == (b"200", b"")


@pytest.mark.parametrize("path", ["/v1/evaluate", "/v2/models/mse/infer"])
def test_where_there_is_no_get_is_405(path: str, service: Running) -> None:
    head, body = answer(service, "HEAD", path)
    assert (head[0].split()[1], body) == (b"405", b"")


@pytest.mark.parametrize("path", PATHS)
def test_is_among_the_methods_that_a_path_takes(path: str, service: Running) -> None:
    head, _ = answer(service, "PATCH", path)
    [allowed] = [line.removeprefix(b"allow: ").split(b", ") for line in head if line.startswith(b"allow: ")]
    assert (head[0].split()[1], {b"get", b"head"} - {*allowed}) == (b"405", set())
