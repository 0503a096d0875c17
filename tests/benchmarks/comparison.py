"""lossd beside its peers: every workload is put to the targets in turn, round after round, while the others are halted.

Only the ratios within one run mean anything: what else the machine does in these minutes, all targets suffer alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from benchmarks import load
from benchmarks.answers import WrongAnswerError, check
from benchmarks.environments import CACHE, NotInstalledError, python_of
from benchmarks.load import Measurement, Post
from benchmarks.targets import LAYERS, TARGETS, Running, Target
from benchmarks.workloads import Workload

OURS = "lossd"
LARGE_REQUESTS = 3
LARGE_BYTES = 1 << 24
WARM_UP_S = 1.0
KINDS = 10
"""How many requests of a workload are checked before it is timed: one of each loss."""

Cell = dict[str, Any]
"""One workload at one number of connections: the rounds of each target, in the order they were taken."""
Step = Callable[[str], None]
"""Told what is being done, once for each thing that takes its time."""


@contextmanager
def started(
    names: Sequence[str], absent: dict[str, str], step: Step, among: Mapping[str, Target] | None = None
) -> Iterator[list[Running]]:
    """Those of the targets that run here, halted; of the others, ``absent`` says why not."""
    CACHE.mkdir(exist_ok=True)
    running: list[Running] = []
    with ExitStack() as stack:
        for name in names:
            step(f"starting {name}")
            try:
                chosen = (TARGETS | LAYERS if among is None else among)[name]
                python = python_of(chosen.environment)
            except NotInstalledError as error:
                absent[name] = str(error)
                continue
            target = Running(chosen, python, CACHE / f"{name}.log")
            stack.callback(target.stop)
            try:
                target.wait_until_it_answers()
            except RuntimeError as error:
                if name == OURS:
                    raise
                absent[name] = str(error)
            else:
                running.append(target)
            finally:
                target.halt()
        yield running


def cells(
    running: Sequence[Running],
    workload: Workload,
    absent: dict[str, str],
    *,
    connections: Sequence[int],
    rounds: int,
    seconds: float,
    step: Step,
) -> Iterator[Cell]:
    """A workload at each number of connections, put to the targets that answer it rightly."""
    sound: list[Running] = []
    for target in running:
        step(f"{workload.name}: is {target.name} right?")
        target.resume()
        try:
            check(target, workload.requests[:KINDS])
        except (WrongAnswerError, RuntimeError, OSError) as error:
            if target.name == OURS:
                raise
            absent[f"{target.name}, {workload.name}"] = str(error)
        else:
            sound.append(target)
        finally:
            target.halt()
    posts = {target.name: [target.dialect.post(question) for question in workload.requests] for target in sound}
    for count in connections:
        taken: dict[str, list[dict[str, float]]] = {target.name: [] for target in sound}
        for number in range(rounds + 1):
            for target in sound if number % 2 else reversed(sound):
                step(f"{workload.name}, {count} at a time: {target.name}")
                if target.name not in taken:
                    continue
                try:
                    figures = one_round(target, posts[target.name], count, seconds if number else WARM_UP_S)
                except (OSError, RuntimeError) as error:
                    if target.name == OURS:
                        raise
                    del taken[target.name]
                    absent[f"{target.name}, {workload.name} {count} at a time"] = str(error)
                else:
                    if number:
                        taken[target.name].append(figures)
        mean_bytes = statistics.mean(len(post.body) for post in posts[OURS])
        yield {"workload": workload.name, "connections": count, "body_bytes": mean_bytes, "rounds": taken}


def one_round(target: Running, posts: Sequence[Post], connections: int, seconds: float) -> dict[str, float]:
    """What a target does while only it runs."""
    target.resume()
    try:
        before_s = target.cpu_s()
        measured = put(target, posts, connections, seconds)
        cpu_ms = (target.cpu_s() - before_s) / max(1, measured.requests) * 1e3
        memory_mb = target.memory_mb()
    finally:
        target.halt()
    if not measured.per_second:
        raise RuntimeError(f"{measured.requests} answers, and no result among them")
    return asdict(measured) | {"per_second": measured.per_second, "cpu_ms": cpu_ms, "memory_mb": memory_mb}


def put(target: Running, posts: Sequence[Post], connections: int, seconds: float) -> Measurement:
    """A round by the generator that suits it: large bodies take so long that their number counts, not the seconds."""
    if len(posts[0].body) > LARGE_BYTES:
        return load.sockets(target.address, posts, connections, seconds, at_least=LARGE_REQUESTS * connections)
    return (load.wrk if load.have_wrk() else load.sockets)(target.address, posts, connections, seconds)


# What the rounds come to


def peers(cell: Cell) -> list[str]:
    """The targets beside lossd, the fastest first."""
    return sorted(cell["rounds"].keys() - {OURS}, key=lambda name: -median(cell, name))


def median(cell: Cell, name: str, figure: str = "per_second") -> float:
    return statistics.median(taken[figure] for taken in cell["rounds"][name])


def ratios(cell: Cell, peer: str) -> list[float]:
    """How many times a peer's requests a second lossd's are, round by round, in ascending order."""
    rounds = cell["rounds"]
    return sorted(
        ours["per_second"] / theirs["per_second"] for ours, theirs in zip(rounds[OURS], rounds[peer], strict=True)
    )
