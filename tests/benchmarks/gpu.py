"""lossd on a GPU: how fast, how much of a request is transfer, and how near its kernels come to copying memory.

With ``--device cpu`` it measures the same of a CPU, so that it can be tried anywhere.
"""

from __future__ import annotations

import http.client
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.comparison import OURS, Cell, Step, cells, median, started
from benchmarks.dialects import Question
from benchmarks.findings import Finding
from benchmarks.goals import Verdict
from benchmarks.targets import TARGETS, Running
from benchmarks.workloads import WORKLOADS

COPIED_BYTES = 256 << 20
COPIES = 20
ALONE = 20
"""How many requests are sent one after the other, to see their stages."""
KERNELS = (3.0, 1.5)
"""How many times as long as copying the same bytes L's kernels may take: required, and better still."""

_STAGE = re.compile(r"(\w+);dur=([\d.]+)")


def measure(device: str, rounds: int, seconds: float, step: Step) -> Finding:
    """S, M, L and X on a device: rates, transfer against compute, L over the copy floor, and what batching gains."""
    found = Finding(("", "requests/s", "p50 ms", "alone: copy ms", "alone: compute ms", "copy's share"))
    per_s = copied_bytes_per_s(device)
    plain = TARGETS[OURS]
    ours = replace(plain, command=lambda *at: [*plain.command(*at), "--device", device])
    measured: dict[tuple[str, int], Cell] = {}
    with started([OURS], found.absent, step, {OURS: ours}) as (lossd,):
        for name, build in WORKLOADS.items():
            workload = build()
            step(f"{name}: stages")
            copy_ms, compute_ms = stages(lossd, workload.requests)
            options = {"connections": workload.connections, "rounds": rounds, "seconds": seconds, "step": step}
            for cell in cells([lossd], workload, found.absent, **options):
                place = name, cell["connections"]
                measured[place] = cell
                rate, p50_ms = median(cell, OURS), median(cell, OURS, "p50_ms")
                share = copy_ms / (copy_ms + compute_ms)
                found.rows.append((f"{name}, {place[1]} at a time", rate, p50_ms, copy_ms, compute_ms, share))
            if name == "L":
                found.verdicts.append(over_the_floor(workload.requests[0], compute_ms, per_s))
    found.rows.append((f"copying memory on {named(device)}, GB/s", per_s / 1e9, "", "", "", ""))
    gain = median(measured["S", 64], OURS) / median(measured["S", 1], OURS)
    found.verdicts.append(Verdict("S, 64 at a time over one at a time, requests a second", gain, 1.0, unit="×"))
    return found


def over_the_floor(question: Question, compute_ms: float, per_s: float) -> Verdict:
    """Return how many times as long a request's kernels take as reading its inputs and writing its gradient once."""
    nbytes = sum(array.nbytes for array in question[1].values()) + question[1]["prediction"].nbytes
    floor_ms = nbytes / (2 * per_s) * 1e3  # a copy reads and writes each byte
    return Verdict("L's kernels over copying its bytes", compute_ms / floor_ms, *KERNELS, "×", at_most=True)


def copied_bytes_per_s(device: str) -> float:
    """Return how many bytes a second the device copies within its memory."""
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    wait: Callable[[], Any] = torch.cuda.synchronize if source.is_cuda else lambda: None
    target.copy_(source)
    taken_s = []
    for _ in range(COPIES):
        wait()
        begin_s = time.perf_counter()
        target.copy_(source)
        wait()
        taken_s.append(time.perf_counter() - begin_s)
    return COPIED_BYTES / statistics.median(taken_s)


def named(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def stages(target: Running, requests: Any) -> tuple[float, float]:
    """Return the median copy and compute of requests that are sent one after the other, in milliseconds."""
    target.resume()
    taken = []
    connection = http.client.HTTPConnection(*target.address, timeout=120)
    try:
        for number in range(ALONE + 1):
            post = target.dialect.post(requests[number % len(requests)])
            connection.request("POST", post.path, post.body, dict(post.headers))
            response = connection.getresponse()
            response.read()
            found = dict(_STAGE.findall(response.headers["Server-Timing"]))
            taken.append((float(found["copy"]), float(found["compute"])))
    finally:
        connection.close()
        target.halt()
    copies, computes = zip(*taken[1:], strict=True)  # the first one is slower
    return statistics.median(copies), statistics.median(computes)
