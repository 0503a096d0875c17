"""A first start: how long it takes to an address, an answer, and the compiled passes, where nothing is compiled yet."""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import orjson

from benchmarks.comparison import OURS, Step
from benchmarks.environments import CACHE, python_of
from benchmarks.findings import Finding
from benchmarks.goals import Verdict
from benchmarks.targets import TARGETS, Running
from benchmarks.workloads import focal
from lossd.api.evaluate import plan_of
from lossd.compiled.recipes import look_up

LOOK_S = 0.02
LONGEST_S = 300.0
ADDRESS, ANSWER, FOCAL, ALL = "it accepts connections", "its first answer (S)", "focal compiled", "every pass compiled"


def measure(rounds: int, seconds: float, step: Step) -> Finding:
    """Seconds and CPU seconds of a first start, whose compiled code is in a new folder each round."""
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        step("a first start")
        for stage, elapsed_s, cpu_s in stages():
            taken.setdefault(stage, []).append((elapsed_s, cpu_s))
    found = Finding(("until", "seconds", "CPU seconds"))
    found.rows += [(stage, *map(statistics.median, zip(*figures, strict=True))) for stage, figures in taken.items()]
    figures = {stage: (elapsed_s, cpu_s) for stage, elapsed_s, cpu_s in found.rows}
    found.verdicts += [
        Verdict("a first start, to the first answer", figures[ANSWER][0], 4.0, 3.0, " s", at_most=True),
        Verdict("a first start, to focal compiled, CPU time", figures[FOCAL][1], 8.0, 5.0, " s", at_most=True),
    ]
    return found


def stages() -> Iterator[tuple[str, float, float]]:
    """Start a service, and yield each stage when it is reached: its name, seconds, and CPU seconds of all processes."""
    CACHE.mkdir(exist_ok=True)
    question = focal((64, 10))
    with tempfile.TemporaryDirectory() as folder:
        ours = TARGETS[OURS]
        target = replace(ours, variables={**ours.variables, "LOSSD_CACHE_DIR": folder})
        begin_s = time.monotonic()
        running = Running(target, python_of(""), CACHE / "first-start.log")
        try:
            for stage, reached in (
                (ADDRESS, lambda: accepts(running)),
                (ANSWER, lambda: bool(running.ask(question))),
                (FOCAL, lambda: ready(running)[0] >= kernels_of_focal()),
                (ALL, lambda: len(set(ready(running))) == 1),
            ):
                while not reached():
                    if running.process.poll() is not None or time.monotonic() - begin_s > LONGEST_S:
                        raise RuntimeError(f"{stage}: not within {LONGEST_S:.0f} s")
                    time.sleep(LOOK_S)
                yield stage, time.monotonic() - begin_s, running.cpu_s()
        finally:
            running.stop()


def accepts(running: Running) -> bool:
    try:
        socket.create_connection(running.address).close()
    except ConnectionRefusedError:
        return False
    return True


def ready(running: Running) -> tuple[int, int]:
    """Return how many passes are compiled, and how many are to be."""
    host, port = running.address
    compiled = httpx.get(f"http://{host}:{port}/health/ready").json()["compiled"]
    return compiled["ready"] if compiled["total"] else -1, compiled["total"]


def kernels_of_focal() -> int:
    """Return how many kernels the request needs. Those that requests need are compiled first."""
    request, arrays = focal((64, 10))
    layout = {name: (array.dtype.name, array.shape) for name, array in arrays.items()}
    return len(look_up(plan_of(orjson.dumps(request)).job(layout).recipe).kernels)
