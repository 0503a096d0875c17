"""The CPU time of a batch of a run in each process, beside that of an evaluation of the same tensors."""

from __future__ import annotations

import http.client
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.comparison import OURS, Step, started
from benchmarks.dialects import Arrays, Safetensors
from benchmarks.findings import Finding
from benchmarks.load import Post, sockets
from benchmarks.targets import ANSWER_S, KEY, TARGETS, Running

HEADINGS = ("a batch of a run, µs", "front", "worker", "recorder", "in all", "evaluated", "over evaluating")
PROCESSES = ("front", "worker", "recorder")
CONNECTIONS = 16

COMPILED_S = 1800.0
PENDING = 'state="pending"'


class Size(NamedTuple):
    """Tensors of a task, and how many requests are sent at a time."""

    what: str
    task: str
    shape: tuple[int, ...]
    connections: int = CONNECTIONS


SIZES = (
    Size("multiclass (64, 10)", "multiclass", (64, 10)),
    Size("the same, 64 at a time", "multiclass", (64, 10), 64),
    Size("binary (4096,)", "binary", (4096,)),
    Size("multiclass (4096, 10)", "multiclass", (4096, 10)),
    Size("segmentation (8, 4, 64, 64)", "segmentation", (8, 4, 64, 64)),
    Size("multiclass (4096, 100)", "multiclass", (4096, 100)),
    Size("multiclass (64, 1000)", "multiclass", (64, 1000)),
    Size("multiclass (256, 1000)", "multiclass", (256, 1000)),
    Size("multiclass (1024, 1000)", "multiclass", (1024, 1000)),
)


@dataclass(frozen=True)
class Taken:
    """The CPU time of a request in µs, by kind of process."""

    by_process: dict[str, float]

    @property
    def in_all(self) -> float:
        """Of all processes."""
        return sum(self.by_process.values())


def tensors(size: Size) -> Arrays:
    """Return scores and targets."""
    rng = np.random.default_rng(0)
    prediction = rng.standard_normal(size.shape, dtype=np.float32)
    if size.task == "binary":
        return {"prediction": prediction, "target": rng.integers(0, 2, size.shape).astype(np.float32)}
    rows, classes, *pixels = size.shape
    return {"prediction": prediction, "target": rng.integers(0, classes, (rows, *pixels))}


def evaluation(size: Size) -> Post:
    """Return the request that evaluates the tensors."""
    return _dialect("/v1/evaluate").post(({"task": size.task, "metrics": ["default"]}, tensors(size)))


def batches(size: Size, run: str) -> Iterator[Post]:
    """Yield the requests that count the tensors as one batch after the other."""
    arrays = tensors(size)
    for number in itertools.count():
        at = _dialect(f"/v1/runs/{run}/batches/{number:08d}")
        yield replace(at.post(({"first": number * size.shape[0]}, arrays)), method="PUT")


def _dialect(path: str) -> Safetensors:
    return Safetensors(path, {"X-API-Key": KEY})


def ask(service: Running, method: str, path: str, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the answer to a request in JSON.

    Raises:
        RuntimeError: It is an error.
    """
    found: dict[str, Any] = json.loads(_answer(service, method, path, document))
    return found


def _answer(service: Running, method: str, path: str, document: dict[str, Any] | None = None) -> bytes:
    connection = http.client.HTTPConnection(*service.address, timeout=ANSWER_S)
    body = None if document is None else json.dumps(document)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json", "X-API-Key": KEY})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status not in (200, 201):
        raise RuntimeError(f"{method} {path}: {response.status}: {answer[:500]!r}")
    return answer


def wait_until_compiled(service: Running) -> None:
    """Return when the workers have compiled all passes, which takes their CPU time.

    Raises:
        RuntimeError: They have not after half an hour.
    """
    deadline = time.monotonic() + COMPILED_S
    while time.monotonic() < deadline:
        lines = _answer(service, "GET", "/metrics").decode().splitlines()
        pending = [line for line in lines if line.startswith("lossd_compiled_passes{") and PENDING in line]
        if not any(float(line.rpartition(" ")[2]) for line in pending):
            return
        time.sleep(1.0)
    raise RuntimeError("the workers still compile passes; run `lossd compile` before")


def counted(service: Running, size: Size, run: str, seconds: float) -> Taken:
    """Return what a batch takes; every one that was answered is counted.

    Raises:
        RuntimeError: A batch was refused, or is not counted.
    """
    definition = {"task": size.task, "metrics": ["default"], "identity": "position"}
    ask(service, "PUT", f"/v1/runs/{run}", definition)
    taken, requests = _timed(service, batches(size, run), size.connections, seconds)
    found = ask(service, "GET", f"/v1/runs/{run}")["counted"]["batches"]
    if found != requests:
        raise RuntimeError(f"{size.what}: {requests} batches were answered, and {found} are counted")
    return taken


def evaluated(service: Running, size: Size, seconds: float) -> Taken:
    """Return what an evaluation takes."""
    return _timed(service, [evaluation(size)], size.connections, seconds)[0]


def _timed(service: Running, posts: Any, connections: int, seconds: float) -> tuple[Taken, int]:
    before = {process: _cpu_s(process) for process in service.processes()}
    measured = sockets(service.address, posts, connections, seconds)
    if measured.failures:
        raise RuntimeError(f"{measured.failures} of {measured.requests} requests failed")
    used = dict.fromkeys(PROCESSES, 0.0)
    for process in service.processes():
        used[_kind(service, process)] += _cpu_s(process) - before.get(process, 0.0)
    return Taken({kind: 1e6 * cpu_s / measured.requests for kind, cpu_s in used.items()}), measured.requests


def _cpu_s(process: int) -> float:
    """Return the processor time of a process in seconds, in nanoseconds' steps: its clock's number is from its id."""
    with suppress(OSError):
        return time.clock_gettime((~process << 3) | 2)
    return 0.0


def _kind(service: Running, process: int) -> str:
    if process == service.process.pid:
        return "front"
    with suppress(OSError):
        if b"lossd.recorder" in Path(f"/proc/{process}/cmdline").read_bytes():
            return "recorder"
    return "worker"


def measure(rounds: int, seconds: float, step: Step) -> Finding:
    """A batch of a run through the service beside its evaluation: the CPU time of each process.

    Each figure is the least of the rounds, by the sum of all processes; one round to warm up comes before.
    """
    found = Finding(HEADINGS, generator="Python sockets")
    with tempfile.TemporaryDirectory() as folder:
        plain = TARGETS[OURS]
        keeping = replace(plain, variables={**plain.variables, "LOSSD_RUNS": str(Path(folder, "runs.db"))})
        with started([OURS], {}, step, {OURS: keeping}) as (service,):
            service.resume()
            step("waiting for compiled passes")
            wait_until_compiled(service)
            for number, size in enumerate(SIZES):
                step(size.what)
                runs, evaluations = [], []
                for at in range(rounds + 1):
                    evaluations.append(evaluated(service, size, seconds))
                    runs.append(counted(service, size, f"size-{number}-{at}", seconds))
                run, alone = (min(each[1:], key=lambda taken: taken.in_all) for each in (runs, evaluations))
                each = (run.by_process[kind] for kind in PROCESSES)
                found.rows.append((size.what, *each, run.in_all, alone.in_all, run.in_all / alone.in_all))
    return found
