"""A real service for tests: uvicorn in a thread, a socket, an engine with its worker process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import httpx
import uvicorn

from lossd.api import create_app
from lossd.api.http.connection import http_for
from lossd.api.server import Forwarded, known_heads
from lossd.configuration.keys import fresh_key, key_line
from lossd.configuration.settings import Settings
from lossd.engine import Engine, create_engine, worker_process


@dataclass
class Running:
    """A service that answers at ``url``; ``engine`` is its engine, to look inside."""

    url: str
    port: int
    engine: Engine
    settings: Settings

    def wait_until(self, condition: Any, timeout_s: float = 30.0) -> None:
        """Wait for a condition of the engine."""
        end = time.monotonic() + timeout_s
        while not condition(self.engine):
            assert time.monotonic() < end, "the condition did not come true"
            time.sleep(0.005)


@cache
def openapi() -> dict[str, Any]:
    """The OpenAPI document of the service, made once, because that takes 0.6 s. Do not change it."""
    return create_app(Settings(engine="inline")).openapi()


@contextmanager
def running(*, ready: bool = True, mortal: bool = False, **settings: Any) -> Iterator[Running]:
    """Serve on a free loopback port until the block ends.

    Args:
        ready: Wait for its workers first.
        mortal: Its workers may die; where nobody means them to, that is a failure, however well it was made good.
        settings: Of the service.
    """
    chosen = Settings(port=0, **({"threads": 1} | settings))
    engine = create_engine(chosen)
    config = uvicorn.Config(
        Forwarded(create_app(chosen, engine)), interface="asgi3", proxy_headers=False,
        host="127.0.0.1", port=0, loop="uvloop", http=http_for(chosen, known_heads()), ws="none",
        log_level="error", timeout_graceful_shutdown=5,
        timeout_keep_alive=max(1, chosen.keep_alive_timeout_ms // 1000),
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server ended before it had started"
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    service = Running(f"http://127.0.0.1:{port}", port, engine, chosen)
    try:
        if ready:
            service.wait_until(lambda e: e.ready, timeout_s=110.0)
        yield service
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive(), "the server did not stop"
    assert mortal or engine.stats.restarts == 0, "a worker died"


ALICE, BOB = fresh_key(), fresh_key()
"""The keys of two people who have runs."""


@contextmanager
def keeping_runs(folder: Path, *, of_two: bool = False, **settings: Any) -> Iterator[Running]:
    """Serve with a recorder, in this process and without compiled passes.

    Args:
        folder: Where the runs are kept.
        of_two: Only Alice and Bob may ask.
        settings: Of the service.
    """
    if of_two:
        settings["api_keys_file"] = folder / "keys"
        settings["api_keys_file"].write_text(f"{key_line('alice', ALICE)}\n{key_line('bob', BOB)}\n")
    with running(engine="inline", compiled=False, runs=str(folder / "runs.db"), **settings) as service:
        yield service


@contextmanager
def asking(service: Running, key: str | None = None) -> Iterator[httpx.Client]:
    """Ask a service for a minute at most, with a key if one is given."""
    with httpx.Client(base_url=service.url, headers={"X-API-Key": key} if key else None, timeout=60) as http:
        yield http


@contextmanager
def command(
    *options: str, files: int | None = None, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str], IO[str]]]:
    """``lossd serve`` with these options, limit of open files and variables: its URL, its process and its log.

    It is forked from a process that has imported what it needs; see ``warm``.
    """
    program = ["-m", "lossd.cli"]
    if files is not None:
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))"
        program = ["-c", f"{limit}; from lossd.cli import main; main()"]
    line = [sys.executable, *program, "serve", "--port=0", "--engine=inline", "--compiled=false", *options]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    process = worker_process.subprocess.Popen(
        line, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        try:
            announced = process.stdout.readline()
            url = re.search(r"https?://\S+(?=,)", announced)
            assert url is not None, process.stderr.read()
            yield url[0], process, process.stderr
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()


def certificate(
    folder: Path,
    name: str,
    *,
    signed_by: str | None = None,
    password: str | None = None,
    subject: str = "IP:127.0.0.1",
) -> tuple[Path, Path]:
    """A certificate for this machine, or another subject, made with openssl, and its key."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    line = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    line += ["-keyout", str(key), "-out", str(cert), "-subj", f"/CN={name}", "-addext", f"subjectAltName={subject}"]
    line += ["-noenc"] if password is None else ["-passout", f"pass:{password}"]
    if signed_by is not None:
        line += ["-CA", str(folder / f"{signed_by}.pem"), "-CAkey", str(folder / f"{signed_by}.key")]
        line += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(line, check=True, capture_output=True)
    return cert, key
