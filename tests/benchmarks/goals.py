"""What is asked of lossd, and whether it is so."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.comparison import OURS, Cell, median, peers, ratios


@dataclass(frozen=True)
class Verdict:
    """A figure and its bounds.

    Attributes:
        what: The question.
        found: What was measured.
        required: The bound.
        beyond: The bound that would be better still.
        unit: Of all three.
        at_most: Whether the bounds are upper ones.
    """

    what: str
    found: float
    required: float
    beyond: float | None = None
    unit: str = ""
    at_most: bool = False

    @property
    def met(self) -> bool:
        return self._within(self.required)

    @property
    def exceeded(self) -> bool:
        return self.beyond is not None and self._within(self.beyond)

    def _within(self, bound: float) -> bool:
        return self.found <= bound if self.at_most else self.found >= bound


RATIOS = {
    ("S", 1): (1.0, 1.5),
    ("S", 16): (2.0, 3.0),
    ("S", 64): (1.15, 1.7),
    ("M", 8): (1.2, 2.0),
    ("L", 1): (3.0, 6.0),
}
"""Requests a second against the best peer: required, and better still."""

CPU_RATIO = (1.0, 1.4)
"""The CPU time of a small request, 64 at a time: mosec's over lossd's."""

TRITON_RATIO = 3.0
"""The mixture's requests a second against Triton's."""
MIXTURE_SHARE = (0.5, 0.8)
"""The mixture's bytes a second against those of the small workload, whose requests are all alike."""
TAIL = (4.0, 2.5)
"""p99 over p50 of the small workload, 16 at a time."""


def of_comparison(cells: Sequence[Cell]) -> list[Verdict]:
    """What the cells say about the goals they can speak of."""
    verdicts = []
    by_place = {(cell["workload"], cell["connections"]): cell for cell in cells}
    for place, (required, beyond) in RATIOS.items():
        if (cell := by_place.get(place)) and (others := peers(cell)):
            found = statistics.median(ratios(cell, others[0]))
            what = f"{place[0]}, {place[1]} at a time, over {others[0]}, the best peer"
            verdicts.append(Verdict(what, found, required, beyond, "×"))
    if (cell := by_place.get(("S", 64))) and "mosec" in cell["rounds"]:
        what = "S, 64 at a time, mosec's CPU time of a request over lossd's"
        verdicts.append(Verdict(what, cpu_ratio(cell, "mosec"), *CPU_RATIO, "×"))
    mixed, alike = by_place.get(("X", 64)), by_place.get(("S", 64))
    if mixed and "pytriton" in mixed["rounds"]:
        found = statistics.median(ratios(mixed, "pytriton"))
        verdicts.append(Verdict("X, 64 at a time, over pytriton", found, TRITON_RATIO, unit="×"))
    if mixed and alike:
        share = bytes_per_second(mixed) / bytes_per_second(alike)
        verdicts.append(Verdict("X, 64 at a time, bytes a second over those of S", share, *MIXTURE_SHARE, "×"))
    if cell := by_place.get(("S", 16)):
        verdicts.append(tail(cell))
    return verdicts


def cpu_ratio(cell: Cell, peer: str) -> float:
    """Return the median over the rounds of a peer's CPU time of a request over lossd's."""
    rounds = cell["rounds"]
    return statistics.median(
        theirs["cpu_ms"] / ours["cpu_ms"] for ours, theirs in zip(rounds[OURS], rounds[peer], strict=True)
    )


def bytes_per_second(cell: Cell) -> float:
    """Of request bodies."""
    return float(median(cell, OURS) * cell["body_bytes"])


def tail(cell: Cell) -> Verdict:
    """How much longer the slowest hundredth waits than half of the requests do."""
    found = statistics.median(taken["p99_ms"] / taken["p50_ms"] for taken in cell["rounds"][OURS])
    what = f"{cell['workload']}, {cell['connections']} at a time, p99 over p50"
    return Verdict(what, found, *TAIL, at_most=True)
