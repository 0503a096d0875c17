"""Measure lossd, and its peers where they are given: ``make bench``.

Every target is started once; each workload is then put to the targets in turn, round after round, while the others are
halted. Only the ratios within one run mean anything: a table of medians is printed, all rounds are written as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import load
from targets import TARGETS, Running
from workloads import WORKLOADS, Workload

LARGE_REQUESTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description="Requests per second, latency, processor time and memory.")
    parser.add_argument("--targets", default="lossd", help="names, comma-separated; ratios are to the first")
    parser.add_argument("--workloads", default="S,M,L,X", help="letters, comma-separated")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds; one to warm up comes before")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round")
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir(), "lossd-bench.json"))
    arguments = parser.parse_args()
    print(f"load by {'wrk' if load.have_wrk() else 'Python sockets'}, medians of {arguments.rounds} rounds\n")
    print(aligned(*HEADINGS))
    running: list[Running] = []
    report: dict[str, Any] = {"rounds": arguments.rounds, "seconds": arguments.seconds, "measurements": []}
    try:
        for name in arguments.targets.split(","):
            running.append(Running(TARGETS[name], arguments.output.with_suffix(f".{name}.log")))
        for target in running:
            target.wait_until_it_answers()
        for letter in arguments.workloads.split(","):
            workload = WORKLOADS[letter]()
            for connections in workload.connections:
                rows = measure(running, workload, connections, arguments.rounds, arguments.seconds)
                report["measurements"] += rows
                for row in rows:
                    print(line(row, rows[0]), flush=True)
    finally:
        for target in running:
            target.stop()
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nevery round: {arguments.output}")


def measure(
    running: list[Running], workload: Workload, connections: int, rounds: int, seconds: float
) -> list[dict[str, Any]]:
    """The rounds of each target, taken alternately; the first, uncounted one warms up."""
    rows = [
        {
            "workload": workload.name,
            "connections": connections,
            "target": target.target.name,
            "idle_mb": target.memory_mb(),
            "rounds": [],
        }
        for target in running
    ]
    bodies = [[target.target.body(*request) for request in workload.requests] for target in running]
    for target in running[1:]:
        target.halt()
    for number in range(rounds + 1):
        order = range(len(running)) if number % 2 else reversed(range(len(running)))
        for index in order:
            target = running[index]
            target.resume()
            before_s = target.cpu_s()
            put = (target.url, bodies[index], target.target.headers, connections, seconds if number else 1.0)
            if workload.large:
                measured = load.sockets(*put, at_least=LARGE_REQUESTS * connections)
            else:
                measured = load.wrk(*put) if load.have_wrk() else load.sockets(*put)
            cpu_ms = (target.cpu_s() - before_s) / max(1, measured.requests) * 1e3
            memory_mb = target.memory_mb()
            target.halt()
            if number:
                figures = asdict(measured) | {"per_second": measured.per_second}
                rows[index]["rounds"].append(figures | {"cpu_ms": cpu_ms, "memory_mb": memory_mb})
    for target in running:
        target.resume()
    return rows


HEADINGS = (
    "",
    "",
    "requests/s",
    "lowest..highest",
    "ratio",
    "p50 ms",
    "p99 ms",
    "CPU ms",
    "MB before",
    "after",
    "failed",
)
WIDTHS = (9, 10, 10, 19, 6, 9, 9, 8, 10, 7, 7)


def line(row: dict[str, Any], first: dict[str, Any]) -> str:
    """The medians of one target, and how it compares with the first."""

    def median(of: dict[str, Any], figure: str) -> float:
        return statistics.median(measured[figure] for measured in of["rounds"])

    rates = [measured["per_second"] for measured in row["rounds"]]
    return aligned(
        f"{row['workload']} c={row['connections']}",
        row["target"],
        f"{median(row, 'per_second'):,.1f}",
        f"{min(rates):,.1f}..{max(rates):,.1f}",
        f"{median(row, 'per_second') / median(first, 'per_second'):.2f}",
        f"{median(row, 'p50_ms'):.2f}",
        f"{median(row, 'p99_ms'):.2f}",
        f"{median(row, 'cpu_ms'):.2f}",
        f"{row['idle_mb']:.0f}",
        f"{max(measured['memory_mb'] for measured in row['rounds']):.0f}",
        f"{sum(measured['failures'] for measured in row['rounds'])}",
    )


def aligned(*cells: str) -> str:
    """Words to the left, figures to the right."""
    padded = (
        f"{cell:<{w}}" if i < 2 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    return " ".join(padded).rstrip()


if __name__ == "__main__":
    main()
