"""L by a client on the service's machine: over TCP, over a Unix socket, and by shared memory."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from tritonclient.http import InferenceServerClient
from tritonclient.utils import shared_memory

from benchmarks import load
from benchmarks.answers import check, compare, expected
from benchmarks.comparison import LARGE_REQUESTS, OURS, Step, started
from benchmarks.dialects import MACRO, Question
from benchmarks.findings import Finding
from benchmarks.goals import Verdict
from benchmarks.load import Address, Post
from benchmarks.targets import KEY, TARGETS, Running, Target
from benchmarks.workloads import focal

PEER = "fastapi"
OVER_TCP, OVER_SOCKET, SHARED = "TCP", "a Unix socket", "shared memory"
REQUIRED = {OVER_TCP: (4.0, 6.0), SHARED: (8.0, 12.0)}
"""How many times the peer's rate: required, and better still."""

Way = tuple[Running, Address, Post]


def measure(rounds: int, seconds: float, step: Step) -> Finding:
    """L by TCP, by a Unix socket and by shared memory, beside FastAPI by TCP; the client's own time counts."""
    found = Finding(("by", "requests/s", "p50 ms", "CPU ms", "over fastapi by TCP"))
    question = focal((1, 21, 1024, 1024))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/lossd.sock"
        with started([OURS, PEER], found.absent, step, targets(path)) as running, memory(question) as (handle, name):
            ways = dict(ways_of(running, path, question, name, step))
            check_shared(ways[SHARED], question, handle)
            taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for number in range(rounds + 1):
                for way in ways if number % 2 else reversed(ways):
                    step(f"L by {way}")
                    figures = one_round(*ways[way], seconds)
                    if number:
                        taken[way].append(figures)
    for way in taken:
        ratio: Any = ""
        if PEER in taken and way != PEER:
            pairs = zip(taken[way], taken[PEER], strict=True)
            ratio = statistics.median(ours["per_second"] / theirs["per_second"] for ours, theirs in pairs)
            if way in REQUIRED:
                found.verdicts.append(Verdict(f"L by {way} over {PEER} by TCP", ratio, *REQUIRED[way], "×"))
        medians = (
            statistics.median(each[figure] for each in taken[way]) for figure in ("per_second", "p50_ms", "cpu_ms")
        )
        found.rows.append((way, *medians, ratio))
    return found


def targets(path: str) -> Mapping[str, Target]:
    """Return lossd with a Unix socket and shared memory, and the peer."""
    plain = TARGETS[OURS]
    ours = replace(plain, command=lambda *at: [*plain.command(*at), "--uds", path, "--shared-memory", "true"])
    return {OURS: ours, PEER: TARGETS[PEER]}


@contextmanager
def memory(question: Question) -> Iterator[tuple[Any, str]]:
    """Yield a file of shared memory with the inputs and room for the gradient, and its name."""
    arrays = list(question[1].values())
    name = f"lossd-benchmark-{os.getpid()}"
    nbytes = sum(array.nbytes for array in arrays) + question[1]["prediction"].nbytes
    handle = shared_memory.create_shared_memory_region(name, f"/{name}", nbytes)
    try:
        shared_memory.set_shared_memory_region(handle, arrays)
        yield handle, name
    finally:
        shared_memory.destroy_shared_memory_region(handle)


def ways_of(running: list[Running], path: str, question: Question, name: str, step: Step) -> Iterator[tuple[str, Way]]:
    """Yield each way with who is asked, where, and what is sent."""
    for target in running:
        step(f"L: is {target.name} right?")
        target.resume()
        check(target, [question])
        post = target.dialect.post(question)
        if target.name == OURS:
            sizes = [array.nbytes for array in question[1].values()]
            nbytes = sum(sizes) + sizes[0]
            with InferenceServerClient("{}:{}".format(*target.address)) as client:
                client.register_system_shared_memory(name, f"/{name}", nbytes, headers={"X-API-Key": KEY})
            yield OVER_TCP, (target, target.address, post)
            yield OVER_SOCKET, (target, path, post)
            yield SHARED, (target, target.address, by_region(question, name))
        else:
            yield target.name, (target, target.address, post)
        target.halt()


def by_region(question: Question, name: str) -> Post:
    """Return the request whose tensors lie in shared memory, one after the other, with the gradient behind them."""
    inputs, at = [], 0

    def place(nbytes: int) -> dict[str, Any]:
        return {"shared_memory_region": name, "shared_memory_byte_size": nbytes, "shared_memory_offset": at}

    for each, array in question[1].items():
        datatype = {"float32": "FP32", "int64": "INT64"}[array.dtype.name]
        inputs.append({"name": each, "shape": array.shape, "datatype": datatype, "parameters": place(array.nbytes)})
        at += array.nbytes
    gradient = {"name": "gradient", "parameters": place(question[1]["prediction"].nbytes)}
    outputs = [gradient, *({"name": each} for each in ("loss", *MACRO, "confusion_matrix"))]
    body = orjson.dumps({"inputs": inputs, "outputs": outputs})
    return Post(f"/v2/models/{question[0]['loss']['name']}/infer", {"X-API-Key": KEY}, body)


def check_shared(way: Way, question: Question, handle: Any) -> None:
    """Raises WrongAnswerError where the answer by shared memory is not that of this process."""
    target, address, post = way
    target.resume()
    load.sockets(address, [post], 1, 0.0)
    target.halt()
    prediction = question[1]["prediction"]
    offset = sum(array.nbytes for array in question[1].values())
    gradient = shared_memory.get_contents_as_numpy(handle, np.float32, prediction.shape, offset=offset)
    right = expected(question)
    compare({"gradient": gradient}, {"gradient": right["gradient"]}, "lossd by shared memory")


def one_round(target: Running, address: Address, post: Post, seconds: float) -> dict[str, float]:
    """Return rate, latency and CPU time of a target that alone runs."""
    target.resume()
    try:
        before_s = target.cpu_s()
        measured = load.sockets(address, [post], 1, seconds, at_least=LARGE_REQUESTS)
        cpu_ms = (target.cpu_s() - before_s) / measured.requests * 1e3
    finally:
        target.halt()
    if measured.failures:
        raise RuntimeError(f"{measured.failures} of {measured.requests} answers were refusals")
    return {"per_second": measured.per_second, "p50_ms": measured.p50_ms, "cpu_ms": cpu_ms}
