"""Where the machine has no memory, process or file left: who asks is told so, and what is left to do is tried again."""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fronts.group import is_alive
from lossd.api import drawing
from lossd.engine import worker_process
from lossd.engine.slab import SlabPool
from lossd_client import wire
from lossd_client.wire import safetensors
from serving import running
from waiting import eventually

MSE = {"loss": {"name": "mse"}, "inputs": {"prediction": [1.0], "target": [3.0]}}
OIP = {
    "inputs": [
        {"name": n, "shape": [1], "datatype": "FP32", "data": [v]} for n, v in (("prediction", 1), ("target", 3))
    ]
}


def failing(function: Callable[..., Any], times: list[int], number: int) -> Callable[..., Any]:
    """The function, which fails so often first."""

    def tried(*args: Any, **kwargs: Any) -> Any:
        if times[0] > 0:
            times[0] -= 1
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    return tried


def large() -> bytes:
    values = {name: wire.Tensor.of(np.ones(1 << 19, np.float32)) for name in ("prediction", "target")}
    text = {"request": '{"loss":{"name":"mse"},"outputs":["loss"]}'}
    return b"".join(bytes(piece) for piece in safetensors.encode(values, text))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM], ids=["files", "memory"])
def test_a_request_without_memory_for_a_slab_is_503_with_retry_after(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        times = [1000]
        monkeypatch.setattr(os, "memfd_create", failing(os.memfd_create, times, number))
        binary = {"Content-Type": safetensors.MEDIA_TYPE, "Accept": "application/json"}
        for sent in (
            http.post("/v1/evaluate", json=MSE),
            http.post("/v2/models/mse/infer", json=OIP),
            http.post("/v1/evaluate", content=large(), headers=binary),
        ):
            assert (sent.status_code, sent.headers["retry-after"]) == (503, "1")
            assert os.strerror(number) in sent.text
        service.wait_until(lambda engine: not engine.in_progress)
        assert service.engine.budget.held_bytes == service.engine.pool.in_use == 0
        times[0] = 0
        assert http.post("/v1/evaluate", json=MSE).json()["loss"] == 4
        assert http.post("/v1/evaluate", content=large(), headers=binary).json()["loss"] == 0


def test_idle_slabs_are_closed_before_a_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []
    pool = SlabPool(1 << 30, closed.append)
    kept = [pool.take(1 << size) for size in (16, 17, 18)]
    for slab in kept:
        pool.give(slab)
    monkeypatch.setattr(os, "memfd_create", failing(os.memfd_create, [1], errno.EMFILE))
    slab = pool.take(1 << 20)
    assert closed == [one.id for one in kept]
    assert (pool.cached_bytes, pool.in_use) == (0, 1)
    pool.give(slab)
    pool.close()


@pytest.mark.parametrize("what", ["process", "connection"])
def test_a_worker_that_could_not_be_started_is_tried_again(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "LONGEST_DELAY_S", 0.2)
    with running(mortal=True, compiled=False) as service, httpx.Client(base_url=service.url, timeout=60) as http:
        times = [worker_process.MAX_STARTS + 1]
        if what == "process":
            processes = worker_process.subprocess
            monkeypatch.setattr(processes, "Popen", failing(processes.Popen, times, errno.EAGAIN))
        else:
            monkeypatch.setattr(socket, "socketpair", failing(socket.socketpair, times, errno.EMFILE))
        os.kill(service.engine.workers[0].pid, signal.SIGKILL)  # type: ignore[attr-defined]
        service.wait_until(lambda _: times[0] == 0)
        service.wait_until(lambda engine: engine.ready, timeout_s=90)
        assert http.post("/v1/evaluate", json=MSE).json()["loss"] == 4


def test_a_worker_ends_with_its_front_during_an_evaluation() -> None:
    command = [sys.executable, "-m", "lossd.cli", "serve", "--port=0", "--threads=1", "--compiled=false"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with worker_process.subprocess.Popen(command, **pipes, text=True) as front:
        assert front.stdout is not None
        assert " listens on " in front.stdout.readline()
        children = Path(f"/proc/{front.pid}/task/{front.pid}/children").read_text().split()
        (worker,) = [int(pid) for pid in children if "lossd.engine.worker" in Path(f"/proc/{pid}/cmdline").read_text()]
        os.kill(worker, signal.SIGSTOP)  # as one that is inside a long operation: it does not see its connection close
        front.kill()
    eventually(lambda: not is_alive(worker))


@pytest.mark.parametrize(
    "path", ["/docs/static/swagger-ui.css", "/docs/static/favicon.png", "/", "/v1/losses/mse/curve.svg"]
)
def test_a_page_is_503_if_the_machine_is_short_of_resources(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of files, of memory or of processes."""
    with running(engine="inline") as service, httpx.Client(base_url=service.url, timeout=60) as http:
        for number in (errno.EMFILE, errno.ENOMEM, errno.EAGAIN):
            times = [1000]
            with monkeypatch.context() as patch:
                patch.setattr(io, "open", failing(io.open, times, number))
                patch.setattr(builtins, "open", failing(builtins.open, times, number))
                patch.setattr(drawing.subprocess, "run", failing(drawing.subprocess.run, times, number))
                answer = http.get(path)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert os.strerror(number) in answer.json()["detail"]
        assert "Traceback" not in caplog.text
        if "svg" not in path:  # which would take long
            assert http.get(path).status_code == 200


def test_a_picture_that_takes_too_long_to_draw_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(command: list[str], **_: Any) -> Any:
        raise subprocess.TimeoutExpired(command, 30)

    with running(engine="inline") as service, monkeypatch.context() as patch:
        patch.setattr(drawing.subprocess, "run", slow)
        answer = httpx.get(f"{service.url}/v1/losses/mse/curve.svg", timeout=60)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "30")
    assert "not drawn within 30 s" in answer.json()["detail"]
