"""``lossd serve`` says that it starts, takes requests at once, and gives its address when a worker is ready."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from lossd.engine import worker_process
from waiting import eventually

MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0, 4.0], "target": [3.0, 3.0]}}
START_S = 90.0

# Every Python process reads it when it starts: workers wait there, or end, as the file says.
SITE = """
import os, sys, time
if "lossd.engine.worker" in sys.orig_argv:
    while not os.path.exists(path := os.environ["WORKERS_GATE"]):
        time.sleep(0.01)
    if status := int(open(path).read() or 0):
        os._exit(status)
"""


class Serving:
    """A service whose workers start when ``gate`` is there."""

    def __init__(self, process: subprocess.Popen[str], port: int, gate: Path, errors: Path) -> None:
        self.process, self.port, self.gate, self._errors = process, port, gate, errors
        self.url = f"http://127.0.0.1:{port}"
        self.output: list[str] = []
        assert process.stdout is not None
        self._reader = threading.Thread(target=self.output.extend, args=(process.stdout,))
        self._reader.start()

    @property
    def errors(self) -> str:
        return self._errors.read_text()

    def open(self, status: int = 0) -> None:
        new = self.gate.with_suffix(".new")
        new.write_text(str(status))
        new.replace(self.gate)


def accepts(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(place: Path, *options: str) -> Iterator[Serving]:
    (place / "sitecustomize.py").write_text(SITE)
    port, errors = free_port(), place / "errors"
    environment = os.environ | {"WORKERS_GATE": str(place / "gate")}
    environment["PYTHONPATH"] = os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lossd.cli", "serve", f"--port={port}", "--threads=1", "--compiled=false"]
    with errors.open("w") as log:
        process = worker_process.subprocess.Popen(
            [*command, *options], env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
    service = Serving(process, port, place / "gate", errors)
    try:
        yield service
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(60)
        service._reader.join(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.parametrize("options", [(), ("--fronts=2",)], ids=["one front", "several"])
def test_requests_wait_for_the_worker_and_the_address_is_said_when_it_is_ready(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    with serving(tmp_path, *options) as service, ThreadPoolExecutor(1) as pool:
        eventually(lambda: "is starting" in service.errors, START_S)
        eventually(lambda: accepts(service.port), START_S)
        held = pool.submit(httpx.post, f"{service.url}/v1/evaluate", json=MSE, timeout=90)
        assert httpx.get(f"{service.url}/health/live", timeout=60).status_code == 200
        assert httpx.get(f"{service.url}/health/ready", timeout=60).status_code == 503
        late = httpx.post(f"{service.url}/v1/evaluate", json=MSE, headers={"X-Request-Timeout-Ms": "300"}, timeout=60)
        assert late.status_code == 504
        assert "the service is starting" in late.json()["detail"]
        time.sleep(0.3)
        assert (service.output, held.done()) == ([], False)
        service.open()
        assert held.result().json()["loss"] == 2.5
        eventually(lambda: service.output, START_S)
        assert re.fullmatch(
            rf"lossd \S+ listens on {service.url}, reachable from this machine only\n", service.output[0]
        )
        assert httpx.get(f"{service.url}/health/ready", timeout=60).status_code == 200
        assert service.errors.count("is starting") == 1


def test_an_engine_without_a_process_says_its_address_when_it_has_loaded(tmp_path: Path) -> None:
    with serving(tmp_path, "--engine=inline") as service:
        eventually(lambda: accepts(service.port), START_S)
        answer = httpx.post(f"{service.url}/v1/evaluate", json=MSE, timeout=90)
        assert answer.json()["loss"] == 2.5
        eventually(lambda: service.output, START_S)
        assert f"listens on {service.url}," in service.output[0]


@pytest.mark.parametrize("options", [(), ("--fronts=2",)], ids=["one front", "several"])
def test_where_no_worker_starts_the_command_ends_and_says_so(options: tuple[str, ...], tmp_path: Path) -> None:
    with serving(tmp_path, *options) as service:
        service.open(status=3)
        assert service.process.wait(90) == 2
        assert "the worker on cpu ended 3 times before it was ready, the last time with status 3" in service.errors
    assert service.output == []


@pytest.mark.parametrize("options", [(), ("--fronts=2",)], ids=["one front", "several"])
def test_it_can_be_stopped_while_it_starts(options: tuple[str, ...], tmp_path: Path) -> None:
    with serving(tmp_path, *options) as service:
        eventually(lambda: accepts(service.port), START_S)
        assert httpx.get(f"{service.url}/health/live", timeout=60).status_code == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        assert "Traceback" not in service.errors
    assert service.output == []


STOPPED_BEFORE_ITS_LOOP_RUNS = """
import os, signal, uvicorn
run = uvicorn.Server.run
def stopped(server, sockets):
    os.kill(os.getpid(), signal.SIGTERM)
    run(server, sockets)
uvicorn.Server.run = stopped
from lossd.cli import main
main(["serve", "--port=0", "--engine=inline", "--compiled=false", "--lame-duck-ms=60000"])
"""


def test_a_signal_before_its_loop_runs_counts() -> None:
    line = [sys.executable, "-c", STOPPED_BEFORE_ITS_LOOP_RUNS]
    done = worker_process.subprocess.run(line, env=os.environ, capture_output=True, timeout=90)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
