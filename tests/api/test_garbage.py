"""Requests leave no cycles to the garbage collector, whose passes would delay other requests."""

from __future__ import annotations

import gc
import json
import socket
import sys

import pytest

from chaos.bodies import HEADERS, PATH, focal
from chaos.http import head
from serving import Running, running

MSE = json.dumps({"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [3.0, 5.0]}}).encode()
FLAWED = MSE.replace(b"5.0", b'"NaN"')
OIP = json.dumps(
    {"inputs": [{"name": n, "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]} for n in ("prediction", "target")]}
).encode()
JSON = {"Content-Type": "application/json"}
KEY = "a-key-of-a-test-for-garbage"

REQUESTS = {
    "safetensors": (200, PATH, HEADERS, focal(64)),
    "in several reads": (200, PATH, HEADERS, focal(10_000)),
    "streamed": (200, PATH, HEADERS, focal(30_000)),
    "json": (200, PATH, JSON, MSE),
    "open inference": (200, "/v2/models/mse/infer", JSON, OIP),
    "packed answer": (200, PATH, {**HEADERS, "Accept-Encoding": "gzip"}, focal(64)),
    "refused by the worker": (422, PATH, JSON, FLAWED),
    "refused by the front": (400, PATH, JSON, MSE[:-1]),
    "without a key": (401, PATH, {**JSON, "X-API-Key": "another-key-of-another-test"}, MSE),
}


@pytest.fixture(scope="module")
def service():
    with running(api_key=KEY) as service:
        yield service


def ask(connection: socket.socket, request: bytes, status: int) -> None:
    connection.sendall(request)
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 20)
    text, _, body = received.partition(b"\r\n\r\n")
    assert text.startswith(b"HTTP/1.1 %d" % status), received
    missing = int(text.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]) - len(body)
    while missing:
        missing -= len(connection.recv(1 << 20))


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="is about reference counts")
@pytest.mark.parametrize("what", REQUESTS)
def test_a_request_leaves_no_garbage(service: Running, what: str) -> None:
    status, path, headers, body = REQUESTS[what]
    request = head("POST", path, {"X-API-Key": KEY} | headers, len(body)) + body
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        for _ in range(5):
            ask(connection, request, status)
        gc.collect()
        gc.disable()
        try:
            for _ in range(40):
                ask(connection, request, status)
            found = gc.collect()
        finally:
            gc.enable()
    assert found < 20
