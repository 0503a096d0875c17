"""Comparisons of runs as the client returns them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lossd_client.messages import Record
from lossd_client.wire import json

__all__ = ["Comparison", "Comparisons", "Difference", "SliceComparison", "interval_digits", "numbers_in", "slice_of"]

TEXTS = ("run", "owner", "slice", "sentence", "detail")
"""The fields whose values are a person's texts, NaN among them."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a metric of a run differs from that of the baseline.

    Attributes:
        baseline: The baseline's value; None if it is undefined.
        value: The run's value; None if it is undefined.
        difference: The run's value minus the baseline's; None without both.
        low: The lower end of the difference's interval; None without an interval.
        high: The upper end.
        standard_error: The standard error of the difference; None without an interval.
        p: The probability of at least this difference if both models are equally good; None without an interval.
        p_holm: ``p``, corrected by Holm's method for the number of metrics in the comparison.
        better: Which values are better: ``higher`` or ``lower``; None for metrics without a better direction.
        verdict: ``b`` if the run is better, ``a`` if the baseline is better, ``undecided``, or None for metrics without
            a better direction or without an interval.
    """

    baseline: float | None
    value: float | None
    difference: float | None
    low: float | None
    high: float | None
    standard_error: float | None
    p: float | None
    p_holm: float | None
    better: Literal["higher", "lower"] | None
    verdict: Literal["a", "b", "undecided"] | None

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Difference:
        """Return the difference in the service's document."""
        return cls(**{name: document.get(name) for name in cls.__dataclass_fields__})


class _Differences:
    """Differences by the name of their metric."""

    metrics: Mapping[str, Difference]

    def __getitem__(self, name: str) -> Difference:
        """Return the difference of a metric, such as ``f1.macro``.

        Raises:
            KeyError: The metric was not compared; the message lists the compared ones.
        """
        if name not in self.metrics:
            raise KeyError(f"{name} was not compared; there are {', '.join(self.metrics) or 'no metrics'}")
        return self.metrics[name]


@dataclass(frozen=True, kw_only=True)
class SliceComparison(_Differences):
    """A run compared with the baseline on the rows of a slice.

    Attributes:
        slice: The slice's name and value, such as ``{"site": "A"}``; several of a crossing.
        rows: The number of rows in the slice.
        metrics: The differences by the metric's name.
    """

    slice: Mapping[str, str]
    rows: int
    metrics: Mapping[str, Difference]


@dataclass(frozen=True, kw_only=True)
class Comparison(_Differences):
    """A run compared with the baseline: ``comparison["f1.macro"].verdict``.

    Attributes:
        baseline: The baseline's name.
        run: The run's name.
        sentence: The verdict in words.
        metrics: The differences by the metric's name: ``accuracy``, ``f1.macro``, ``f1.per_class.3``.
        slices: The comparison on each slice, if it was asked for.
        level: The level of the intervals, such as 0.95.
        paired: Whether the runs were compared on the same groups of rows.
        rows: The number of rows that the baseline has counted.
        provisional: Whether one of the runs is open; the comparison may then change.
        warnings: Warnings, each with ``code`` and ``detail``.
        document: The service's answer.
    """

    baseline: str
    run: str
    sentence: str
    metrics: Mapping[str, Difference]
    slices: list[SliceComparison]
    level: float
    paired: bool
    rows: int
    provisional: bool
    warnings: list[Record]
    document: Record

    def slice(self, **values: str) -> SliceComparison:
        """Return the comparison on a slice: ``comparison.slice(site="A")``.

        Raises:
            KeyError: There is no such slice; the message lists the existing ones.
        """
        found: SliceComparison = slice_of(self.slices, values)
        return found

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Several runs, each compared with the baseline.

    Attributes:
        runs: Each run in the order of the request: ``run``, ``status``, ``rows``, ``values`` and ``intervals``.
        comparisons: The comparison of each further run with the first one.
        document: The service's answer.
    """

    runs: list[Record]
    comparisons: list[Comparison]
    document: Record

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Comparisons:
        """Return the comparisons in the service's document."""
        document = Record(numbers_in(answer))
        first, *others = document.runs
        comparisons = [
            Comparison(
                baseline=first.run,
                run=other.run,
                sentence=found.get("sentence", ""),
                metrics=_differences(found),
                slices=[
                    SliceComparison(slice=each.slice, rows=each.rows, metrics=_differences(each))
                    for each in found.get("slices", [])
                ],
                level=document.level,
                paired=document.paired,
                rows=first.rows,
                provisional=first.get("provisional", False) or other.get("provisional", False),
                warnings=found.get("warnings", []),
                document=document,
            )
            for other, found in zip(others, document.comparisons, strict=True)
        ]
        return cls(runs=document.runs, comparisons=comparisons, document=document)


def _differences(found: Mapping[str, Any]) -> dict[str, Difference]:
    return {name: Difference.of(each) for name, each in found["metrics"].items()}


def numbers_in(value: Any) -> Any:
    """Return a document with "NaN" and infinities as floats, except where names stand."""
    if isinstance(value, dict):
        return {name: each if name in TEXTS else numbers_in(each) for name, each in value.items()}
    return [numbers_in(each) for each in value] if isinstance(value, list) else json.numeric(value)


def interval_digits(low: float, high: float) -> int:
    """Return how many digits behind the point tell the ends of an interval apart, with one to spare."""
    width = high - low
    return min(max(1 - math.floor(math.log10(width)), 0), 12) if 0 < width < math.inf else 3


def slice_of(slices: Any, values: Mapping[str, str]) -> Any:
    """Return the entry of a list of slices whose ``slice`` has these values.

    Args:
        slices: Objects with the attribute ``slice``.
        values: The value of each of the slice's names.

    Raises:
        KeyError: There is none.
    """
    for each in slices:
        if dict(each.slice) == dict(values):
            return each
    known = "; ".join(_named(each.slice) for each in slices)
    raise KeyError(f"there is no slice {_named(values)}; there are {known or 'no slices'}")


def _named(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
