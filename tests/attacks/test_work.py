"""What one client's requests take of the worker and of its memory, and what is left for another's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lossd.keys import fresh_key, key_line
from serving import Running, running

KEYS = {"greedy": fresh_key(), "modest": fresh_key()}
SMALL = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 2.0], "target": [1.0, 4.0]}}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text("".join(key_line(name, key) + "\n" for name, key in KEYS.items()))
    return file


@pytest.fixture
def service(keys_file: Path) -> Iterator[Running]:
    with running(engine="inline", api_keys_file=keys_file, queue_bytes=8 << 20) as service:
        yield service


def ask(service: Running, of: str, request: object = SMALL) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/evaluate", json=request, headers={"Authorization": f"Bearer {KEYS[of]}"}, timeout=60
    )


def test_bodies_that_do_not_come_lock_out_nobody_but_whoever_announced_them(service: Running) -> None:
    """1 MiB is announced on each of 16 connections, of which one byte arrives: twice what may be held."""
    budget, connections = service.engine.budget, []
    head = b"POST /v1/evaluate HTTP/1.1\r\nHost: lossd\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n"
    head += f"Authorization: Bearer {KEYS['greedy']}\r\n\r\n ".encode()
    try:
        for number in range(16):
            connections.append(socket.create_connection(("127.0.0.1", service.port), timeout=10))
            connections[-1].sendall(head)
            if number < 4:
                service.wait_until(lambda engine, held=(number + 1) << 20: engine.budget.gathered_bytes == held)
            else:
                assert connections[-1].recv(12) == b"HTTP/1.1 429"
        assert budget.gathered_bytes == 4 << 20
        for _ in range(3):
            answer = ask(service, "modest")
            assert (answer.status_code, answer.json()["loss"]) == (200, 2.0)
    finally:
        for connection in connections:
            connection.close()
    service.wait_until(lambda engine: not engine.budget.gathered_bytes)
