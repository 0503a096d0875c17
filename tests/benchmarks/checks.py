"""What is asked of lossd alone: cost linear in the pixels, many connections, memory, and the tail of the latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import beside_inline, first_start, load, run_batches, same_host
from benchmarks import runs as costs
from benchmarks.comparison import OURS, Cell, Step, cells, median, one_round, peers, put, ratios, started
from benchmarks.findings import Finding
from benchmarks.goals import Verdict, tail
from benchmarks.targets import IN_JSON, IN_V2, LAYERED, LAYERS, RAY, Running, Target
from benchmarks.workloads import WORKLOADS, Workload, focal

SIDES = (512, 1024, 2048)
CLASSES = 21
LINEAR_WITHIN = 0.15

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LEAST_AT_MOST_CONNECTIONS = 0.8

BEHIND = {LAYERED.name: 0.7, RAY.name: 0.65}
"""How much of the rate is to be left behind each layer."""

DEARER = {"its Hessian": 1.3, "a mask": 1.1}
"""How many times the CPU time of a request the same request may take with what is added to it."""

JSON_RATIOS = {("S", 64): (3.0, 5.0), ("M", 8): (2.0, 3.0)}
"""Requests a second in JSON against the peer's: required, and better still."""

V2_RATIOS = {("S", 16): (4.0, 8.0)}
"""The same over /v2, against Triton's."""

IDLE_MB = 450.0
BODIES_KEPT = 3.0
GROWTH_WITHIN = 0.05
MIXED_REQUESTS = 10_000
MIXED_CONNECTIONS = 64
SETTLE_S = 1.0


Ratios = Mapping[tuple[str, int], tuple[float, float]]
"""By workload and connections: required, and better still."""


@dataclass(frozen=True)
class Check:
    """A check by its name.

    Attributes:
        title: What is asked.
        measure: From rounds, seconds a round and whom to tell of each step to the finding.
        steps: How many steps that is, from the number of rounds.
    """

    title: str
    measure: Callable[[int, float, Step], Finding]
    steps: Callable[[int], int]


@contextmanager
def service(step: Step) -> Iterator[Running]:
    with started([OURS], {}, step) as (running,):
        yield running


def linear(rounds: int, seconds: float, step: Step) -> Finding:
    """The time of L at a quarter of its pixels, and at four times as many."""
    with service(step) as lossd:
        posts = {side: [lossd.dialect.post(focal((1, CLASSES, side, side)))] for side in SIDES}
        times: dict[int, list[float]] = {side: [] for side in SIDES}
        for number in range(rounds + 1):
            for side in SIDES:
                step(f"{side} × {side} pixels")
                measured = one_round(lossd, posts[side], connections=1, seconds=seconds)
                if number:
                    times[side].append(measured["p50_ms"])
    found = Finding(("pixels", "body MB", "p50 ms", "ms a megapixel", "over that of L"))
    per_pixel = {side: statistics.median(taken) / side**2 for side, taken in times.items()}
    for side in SIDES:
        against = per_pixel[side] / per_pixel[1024]
        body_mb = len(posts[side][0].body) / 1e6
        each = per_pixel[side] * 1e6
        found.rows.append((f"{side} × {side}", body_mb, per_pixel[side] * side**2, each, against))
        if side != 1024:
            what = f"{side} × {side} pixels, away from linear by"
            found.verdicts.append(Verdict(what, 100 * abs(against - 1), 100 * LINEAR_WITHIN, unit="%", at_most=True))
    return found


def connections(rounds: int, seconds: float, step: Step) -> Finding:
    """S at one connection to 256."""
    measured = {cell["connections"]: cell for cell in small(CONNECTIONS, rounds, seconds, step)}
    found = Finding(("connections", "requests/s", "p50 ms", "p99 ms", "failed"))
    rates = {}
    for count, cell in measured.items():
        taken = cell["rounds"][OURS]
        rates[count] = statistics.median(each["per_second"] for each in taken)
        p50_ms, p99_ms = (statistics.median(each[name] for each in taken) for name in ("p50_ms", "p99_ms"))
        found.rows.append((count, rates[count], p50_ms, p99_ms, sum(each["failures"] for each in taken)))
    failures = sum(row[-1] for row in found.rows)
    share = rates[CONNECTIONS[-1]] / max(rates.values())
    what = f"requests a second at {CONNECTIONS[-1]} connections over the best"
    found.verdicts.append(Verdict(what, share, LEAST_AT_MOST_CONNECTIONS, unit="×"))
    found.verdicts.append(Verdict("requests that failed", failures, 0, at_most=True))
    return found


def latency(rounds: int, seconds: float, step: Step) -> Finding:
    """The tail at S, 16 at a time."""
    (cell,) = small((16,), rounds, seconds, step)
    found = Finding(("round", "requests/s", "p50 ms", "p99 ms", "p99/p50"), verdicts=[tail(cell)])
    for number, each in enumerate(cell["rounds"][OURS], 1):
        p50_ms, p99_ms = each["p50_ms"], each["p99_ms"]
        found.rows.append((number, each["per_second"], p50_ms, p99_ms, p99_ms / p50_ms))
    return found


def small(counts: tuple[int, ...], rounds: int, seconds: float, step: Step) -> list[Cell]:
    """S by lossd alone."""
    with service(step) as lossd:
        options = {"connections": counts, "rounds": rounds, "seconds": seconds, "step": step}
        return list(cells([lossd], WORKLOADS["S"](), {}, **options))


def memory(rounds: int, seconds: float, step: Step) -> Finding:
    """Front and worker at rest, after large requests, and, started anew, after ten thousand mixed ones."""
    found = Finding(("front and worker", "MB"))

    def note(when: str, lossd: Running) -> float:
        time.sleep(SETTLE_S)
        found.rows.append((when, lossd.memory_mb()))
        return float(found.rows[-1][1])

    with service(step) as lossd:
        lossd.resume()
        idle_mb = note("after the first small request", lossd)
        step("L")
        large = lossd.dialect.post(focal((1, CLASSES, 1024, 1024)))
        put(lossd, [large], connections=1, seconds=seconds)
        after_mb = note("after L, one at a time", lossd)
    with service(step) as lossd:
        lossd.resume()
        posts = [lossd.dialect.post(question) for question in WORKLOADS["X"]().requests]
        step("X, to warm up")
        load.sockets(lossd.address, posts, MIXED_CONNECTIONS, seconds=0, at_least=MIXED_REQUESTS)
        warm_mb = note(f"after {MIXED_REQUESTS:,} requests of X", lossd)
        step(f"X, {MIXED_REQUESTS:,} requests")
        load.sockets(lossd.address, posts, MIXED_CONNECTIONS, seconds=0, at_least=MIXED_REQUESTS)
        grown_mb = note(f"after {MIXED_REQUESTS:,} more", lossd)
    body_mb = len(large.body) / 1e6
    growth = 100 * (grown_mb / warm_mb - 1)
    found.verdicts += [
        Verdict("at rest", idle_mb, IDLE_MB, unit=" MB", at_most=True),
        Verdict("kept after L, in bodies", (after_mb - idle_mb) / body_mb, BODIES_KEPT, at_most=True),
        Verdict(f"growth by {MIXED_REQUESTS:,} requests of X", growth, 100 * GROWTH_WITHIN, unit="%", at_most=True),
    ]
    return found


def scale(rounds: int, seconds: float, step: Step) -> Finding:
    """lossd behind each layer beside lossd alone: rate, and CPU time of all processes but the client's."""
    found = Finding(
        ("workload", "connections", "behind", "alone /s", "behind it /s", "ratio", "alone CPU ms", "behind it CPU ms")
    )
    absent: dict[str, str] = {}
    with started([OURS, *LAYERS], absent, step) as running:
        for workload in layered_workloads():
            options = {"connections": workload.connections, "rounds": rounds, "seconds": seconds, "step": step}
            for cell in cells(running, workload, absent, **options):
                if absent:
                    raise RuntimeError(f"not measured: {absent}")
                found.rows += [_behind(cell, workload.name, layer) for layer in peers(cell)]
                if (workload.name, cell["connections"]) == ("S", 64):
                    for layer in peers(cell):
                        what = f"S, 64 at a time, behind {layer} over alone"
                        found.verdicts.append(Verdict(what, _kept(cell, layer), BEHIND[layer], unit="×"))
    return found


def _behind(cell: Cell, workload: str, layer: str) -> tuple[Any, ...]:
    figures = [median(cell, name, figure) for figure in ("per_second", "cpu_ms") for name in (OURS, layer)]
    return workload, cell["connections"], layer, *figures[:2], _kept(cell, layer), *figures[2:]


def _kept(cell: Cell, layer: str) -> float:
    """Which part of the rate is left behind a layer."""
    return statistics.median(1 / each for each in ratios(cell, layer))


def json(rounds: int, seconds: float, step: Step) -> Finding:
    """S and M with their tensors as numbers in JSON, by lossd and by FastAPI with Pydantic and orjson."""
    return beside(IN_JSON, JSON_RATIOS, rounds, seconds, step)


def v2(rounds: int, seconds: float, step: Step) -> Finding:
    """S and M over /v2, as Triton's own client sends them, by lossd and by Triton Inference Server (pytriton)."""
    return beside(IN_V2, V2_RATIOS, rounds, seconds, step)


def beside(targets: Mapping[str, Target], required: Ratios, rounds: int, seconds: float, step: Step) -> Finding:
    """lossd and one peer that take the same form of S and M: rate, and CPU time of a request."""
    peer = next(name for name in targets if name != OURS)
    found = Finding(
        ("workload", "connections", "lossd /s", f"{peer} /s", "ratio", "lossd CPU ms", f"{peer} CPU ms", "CPU ratio")
    )
    with started([*targets], found.absent, step, targets) as running:
        for name in ("S", "M"):
            workload = WORKLOADS[name]()
            options = {"connections": workload.connections, "rounds": rounds, "seconds": seconds, "step": step}
            for cell in cells(running, workload, found.absent, **options):
                if peer not in cell["rounds"]:
                    continue
                rates, cpu_ms = (
                    [median(cell, who, figure) for who in (OURS, peer)] for figure in ("per_second", "cpu_ms")
                )
                ratio = statistics.median(ratios(cell, peer))
                place = (name, cell["connections"])
                found.rows.append((*place, *rates, ratio, *cpu_ms, cpu_ms[1] / cpu_ms[0]))
                if place in required:
                    what = f"{name}, {cell['connections']} at a time, over {peer}"
                    found.verdicts.append(Verdict(what, ratio, *required[place], unit="×"))
    return found


def layered_workloads() -> list[Workload]:
    """S and M, and L with a quarter of its pixels: 24 MB."""
    large = Workload("L/4", [focal((1, CLASSES, 512, 512))], (1,))
    return [WORKLOADS["S"](), Workload("M", WORKLOADS["M"]().requests, (8,)), large]


def additions(rounds: int, seconds: float, step: Step) -> Finding:
    """S with its Hessian beside S, and M with a mask of a tenth of its rows beside M: rate, and CPU time."""
    found = Finding(
        ("workload", "connections", "with", "without /s", "with /s", "without CPU ms", "with CPU ms", "ratio")
    )
    with service(step) as lossd:
        for what, pair in added_to().items():
            plain, dearer = pair
            measured: list[tuple[dict[str, float], dict[str, float]]] = []
            for number in range(rounds + 1):
                taken = {}
                for each in pair if number % 2 else reversed(pair):
                    step(f"{each.name}, {each.connections[0]} at a time")
                    posts = [lossd.dialect.post(question) for question in each.requests]
                    taken[each.name] = one_round(lossd, posts, each.connections[0], seconds)
                if number:
                    measured.append((taken[plain.name], taken[dearer.name]))
            ratio = statistics.median(more["cpu_ms"] / less["cpu_ms"] for less, more in measured)
            figures = [
                statistics.median(each[place][name] for each in measured)
                for name in ("per_second", "cpu_ms")
                for place in (0, 1)
            ]
            found.rows.append((plain.name, plain.connections[0], what, *figures, ratio))
            title = f"CPU time of {plain.name} with {what} over {plain.name}"
            found.verdicts.append(Verdict(title, ratio, DEARER[what], unit="×", at_most=True))
    return found


def added_to() -> dict[str, tuple[Workload, Workload]]:
    """Workloads without and with something, by what it is."""
    (small, small_inputs), (medium, medium_inputs) = focal((64, 10)), focal((4096, 21))
    outputs = ["loss", "gradient", "metrics"]
    mask = np.random.default_rng(2).random(4096) < 0.9
    return {
        "its Hessian": (
            Workload("S", [({**small, "outputs": outputs}, small_inputs)], (16,)),
            Workload("S+", [({**small, "outputs": [*outputs, "hessian"]}, small_inputs)], (16,)),
        ),
        "a mask": (
            Workload("M", [(medium, medium_inputs)], (8,)),
            Workload("M+", [(medium, {**medium_inputs, "mask": mask})], (8,)),
        ),
    }


def runs(rounds: int, seconds: float, step: Step) -> Finding:
    """The parts that runs add up, and batches in a run beside the same batches evaluated."""
    headings = ("in this process, batches of 65,536 rows", "million rows/s", "ns a row", "over evaluating the batches")
    return Finding(headings, costs.measured(rounds, step))


def losses_of(chosen: Sequence[str]) -> Check:
    """Return the check of these losses."""

    def losses(rounds: int, seconds: float, step: Step) -> Finding:
        """Every loss at a small size, 1 and 16 at a time, beside the same written inline in a FastAPI route."""
        return Finding(beside_inline.HEADINGS, *beside_inline.measure(chosen, rounds, seconds, step))

    return Check("Every loss", losses, lambda rounds: 2 + len(chosen) * 2)


CHECKS = {
    "linear": Check("Cost over pixels", linear, lambda rounds: 1 + len(SIDES) * (rounds + 1)),
    "connections": Check("Connections", connections, lambda rounds: 2 + len(CONNECTIONS) * (rounds + 1)),
    "memory": Check("Memory", memory, lambda rounds: 5),
    "latency": Check("Latency", latency, lambda rounds: 3 + rounds),
    "scale": Check("Layers", scale, lambda rounds: 3 * (4 + 5 * (rounds + 1))),
    "additions": Check("Hessians and masks", additions, lambda rounds: 1 + 4 * (rounds + 1)),
    "json": Check("Numbers in JSON", json, lambda rounds: 4 + 10 * (rounds + 1)),
    "v2": Check("Clients of Triton", v2, lambda rounds: 4 + 10 * (rounds + 1)),
    "same-host": Check("On the same host", same_host.measure, lambda rounds: 4 + 4 * (rounds + 1)),
    "first-start": Check("A first start", first_start.measure, lambda rounds: rounds),
    "losses": losses_of(beside_inline.names()),
    "runs": Check("Runs over data sets", runs, lambda rounds: len([*costs.parts()]) + len(costs.COMPARED)),
    "run-batches": Check("Batches of runs", run_batches.measure, lambda rounds: 2 + len(run_batches.SIZES)),
}
