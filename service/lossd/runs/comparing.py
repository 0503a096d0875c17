"""Compares runs by their states: whether they may be, and what the differences are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd.metrics.registry import Floats
from lossd.request.plan import Plan
from lossd.runs.differences import differing
from lossd.runs.reading import LEVEL, few_rows, headline, names_read, told_apart
from lossd.runs.reading import StratumResult as Read
from lossd.runs.rows.strata import groups_of, strata_of
from lossd.runs.state import RunState
from lossd.runs.statistics.comparison import Difference, holm, paired, unpaired, verdict
from lossd.runs.stratum import Value
from lossd_client.errors import NotComparable
from lossd_client.wire import json

__all__ = ["Side", "comparable", "compared"]

FREE = ("groups", "slices", "crossed", "limit", "rows")
"""The fields of a definition that may differ; whether rows are the same is found from what was counted."""

CLASS = ".per_class."


class Side:
    """A run in comparisons. Its values are computed once, however often it is compared by the same plan.

    Args:
        state: The run, which does not change any more.
        digest: Its digest, if it is known.

    Attributes:
        state: The same run.
    """

    def __init__(self, state: RunState, digest: str | None = None) -> None:
        self.state = state
        self._digest = digest
        self._read: dict[tuple[int, tuple[str, ...], int, float], Read] = {}

    @property
    def digest(self) -> str:
        """The digest of the state."""
        if self._digest is None:
            self._digest = self.state.digest
        return self._digest

    def read(self, plan: Plan, number: int, names: Sequence[str], groups: int, level: float) -> Read:
        """Return the values of a stratum; arguments are those of :meth:`StratumResult.of`."""
        key = number, tuple(names), groups, level
        if key not in self._read:
            self._read[key] = Read.of(self.state, plan, number, names, groups, level)
        return self._read[key]


def comparable(baseline: RunState, other: RunState, *, unpaired: bool = False) -> None:
    """Check that two runs differ in their predictions only.

    Args:
        baseline: The one run.
        other: The other.
        unpaired: Whether they may be of different rows.

    Raises:
        NotComparable: They differ in more; ``differs`` names what, and the detail the remedy.
    """
    found = differing(_judged_by(baseline.definition), _judged_by(other.definition))
    differs = [pointer.removeprefix("/request") for pointer in found]
    if differs:
        raise NotComparable(
            f"the definitions differ in {', '.join(differs)}; score both runs by one definition", differs=differs
        )
    if baseline.facts is None or other.facts is None:
        raise NotComparable("a run has counted no rows; send its batches, then compare it", differs=["rows"])
    common = baseline.versions.keys() & other.versions.keys()
    changed = sorted(name for name in common if baseline.versions[name] != other.versions[name])
    if changed:
        detail = (
            f"the definition of {', '.join(changed)} has changed between the runs; count the rows of the older again"
        )
        raise NotComparable(detail, differs=["versions"])
    if baseline.facts.classes != other.facts.classes:
        detail = f"one run has {baseline.facts.classes} classes, the other {other.facts.classes}"
        raise NotComparable(detail, differs=["classes"])
    if unpaired:
        return
    remedy = "send unpaired to compare runs of different rows"
    if baseline.rows != other.rows:
        detail = f"one run has counted {baseline.rows} rows, the other {other.rows}; count the same rows, or {remedy}"
        raise NotComparable(detail, differs=["rows"])
    if baseline.targets != other.targets or (baseline.targets is None and _rows_differ(baseline, other)):
        what = "rows" if baseline.targets is None else "targets"
        detail = f"the runs have different {what}; score both on the same data, or {remedy}"
        raise NotComparable(detail, differs=[what])
    if _pairing(baseline) != _pairing(other):
        detail = (
            "the runs have grouped their rows differently: send the same batches or the same clusters to both, "
            f"or identify rows by position or by id, or {remedy}"
        )
        raise NotComparable(detail, differs=["pairing"])


def _judged_by(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same of two definitions: all but which metrics are named, and the fields of ``FREE``.

    Predictions may be scores in one and class indices in the other: the decisions are compared.
    """
    request = dict(definition["request"])
    options = {name: value for name, value in request.pop("metrics", {}).items() if name not in ("names", "classes")}
    outputs = [name for name in request.pop("outputs") if name != "metrics"]
    fields = {name: value for name, value in definition.items() if name not in (*FREE, "request")}
    return {"request": {**request, "metrics": options, "outputs": outputs}, **fields}


def _rows_differ(baseline: RunState, other: RunState) -> bool:
    """Return whether runs without targets have counted other rows, as far as rows are told apart."""
    if baseline.definition["identity"] == "batch":
        return _pairing(baseline) is None or _pairing(other) is None
    return baseline.identity.encode() != other.identity.encode()


def _pairing(state: RunState) -> Any:
    return getattr(state, "pairing", None)


def compared(
    sides: Sequence[Side],
    plan: Plan,
    *,
    level: float = LEVEL,
    metrics: Sequence[str] | None = None,
    classes: bool = False,
    slices: bool = False,
    unpaired: bool = False,
) -> dict[str, Any]:
    """Return the comparison of runs with the first one, the baseline, as JSON values.

    Args:
        sides: The runs, two or more.
        plan: The plan of the baseline's definition.
        level: The level of the intervals, and of the verdicts.
        metrics: The metrics; None for those that the definitions of all runs name.
        classes: Whether the values of single classes are compared.
        slices: Whether the common slices are compared.
        unpaired: Whether the runs may be of different rows.

    Raises:
        NotComparable: A run differs from the baseline in more than its predictions.
        InvalidRequest: A run has not counted what a metric is made of.
    """
    states = [side.state for side in sides]
    baseline, *others = states
    for other in others:
        comparable(baseline, other, unpaired=unpaired)
    if metrics is None:
        named = [set(names_read(state, plan, None)) for state in states]
        names: Sequence[str] = [name for name in names_read(baseline, plan, None) if all(name in n for n in named)]
    else:
        names, *_ = [names_read(state, plan, metrics) for state in states]
    groups = min(groups_of(state.definition) for state in states)
    request = _ComparisonRequest(plan, names, groups, level, classes, unpaired)
    numbers = [{_key(labels): number for number, labels in enumerate(strata_of(s.definition))} for s in states]
    strata = [labels for labels in strata_of(baseline.definition) if all(_key(labels) in known for known in numbers)]
    strata = strata if slices else strata[:1]
    read = [
        [request.read(side, known[_key(labels)]) for labels in strata]
        for side, known in zip(sides, numbers, strict=True)
    ]
    document = {
        "level": level,
        "paired": not unpaired,
        "groups": groups,
        "rows": baseline.rows,
        "runs": [
            {
                "rows": side.state.rows,
                "digest": side.digest,
                "targets": side.state.targets,
                "values": request.numbers(strata[0]),
                "intervals": {
                    name: found._asdict() for name, found in strata[0].intervals.items() if classes or CLASS not in name
                },
            }
            for side, strata in zip(sides, read, strict=True)
        ],
        "comparisons": [request.comparison(strata, read[0], other) for other in read[1:]],
    }
    finite: dict[str, Any] = json.finite(document)
    return finite


def _key(labels: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


@dataclass(frozen=True, slots=True)
class _ComparisonRequest:
    """What a comparison asks for.

    Attributes:
        plan: The plan of the baseline's definition.
        names: The metrics.
        groups: How many groups of rows are told apart.
        level: The level.
        classes: Whether the values of single classes are compared.
        unpaired: Whether the runs are of different rows.
    """

    plan: Plan
    names: Sequence[str]
    groups: int
    level: float
    classes: bool
    unpaired: bool

    def read(self, side: Side, number: int) -> Read:
        """Return the values of a stratum of a run."""
        return side.read(self.plan, number, self.names, self.groups, self.level)

    def numbers(self, read: Read) -> dict[str, Any]:
        """Return the numbers of a stratum by name; NaN for what is not defined."""
        found = {name: value for name, value, _ in headline(self.plan.task, read.loss, read.metrics)}
        if self.classes:
            values = zip(read.left_out.values, read.left_out.numbers[0].tolist(), strict=True)
            found |= {known.name: value for known, value in values if CLASS in known.name}
        return {name: None if value != value else value for name, value in found.items()}

    def comparison(
        self, strata: Sequence[Mapping[str, str]], baseline: Sequence[Read], other: Sequence[Read]
    ) -> dict[str, Any]:
        """Return the comparison of a run with the baseline, stratum by stratum; all rows come first."""
        tables = [self._table(first, second) for first, second in zip(baseline, other, strict=True)]
        # What was asked together is corrected together.
        entries = [entry for table, _ in tables for entry in table.values()]
        for entry, p in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
            entry["p_holm"] = p
            if p is not None and entry["better"] is not None:
                entry["verdict"] = verdict(entry["difference"], p, entry["better"], self.level)
        [(metrics, lacking), *rest] = tables
        return {
            "metrics": metrics,
            "slices": [
                {"slice": dict(labels), "rows": read.rows, "metrics": table, "warnings": _warnings(read, without)}
                for labels, read, (table, without) in zip(strata[1:], other[1:], rest, strict=True)
            ],
            "warnings": _warnings(other[0], lacking),
        }

    def _table(self, baseline: Read, other: Read) -> tuple[dict[str, dict[str, Any]], list[Value]]:
        """Return what is said of each number, and the values of which too few rows say nothing."""
        known, differences, lacking = self._differences(baseline, other)
        values, further = self.numbers(baseline), self.numbers(other)
        sides: dict[str, Any] = {
            name: "lower" if metric is None else metric.better
            for name, _, metric in headline(self.plan.task, baseline.loss, baseline.metrics)
        } | {name: value.better for name, value in known.items()}
        table: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            if name not in further:
                continue
            found = differences.get(name)
            plain = isinstance(value, float | int) and isinstance(further[name], float | int)
            table[name] = {
                "baseline": value,
                "value": further[name],
                "difference": further[name] - value if plain else None,
                "low": None if found is None else found.low,
                "high": None if found is None else found.high,
                "standard_error": None if found is None else found.standard_error,
                "p": None if found is None else found.p,
                "p_holm": None,
                "better": sides.get(name),
                "verdict": "undecided" if name in known and sides.get(name) is not None else None,
            }
        return table, lacking

    def _differences(self, baseline: Read, other: Read) -> tuple[dict[str, Value], dict[str, Difference], list[Value]]:
        """Return the values that both runs tell, their differences, and the values of which too few rows tell."""
        first, second = baseline.left_out, other.left_out
        places = {value.name: place for place, value in enumerate(second.values)}
        known = {
            value.name: value
            for value in first.values
            if value.name in places and (self.classes or CLASS not in value.name)
        }
        enough = all(told_apart(read.rows, read.left_out.groups, self.groups) for read in (baseline, other))
        if not known or not enough:
            return known, {}, []
        places_of_first = {value.name: place for place, value in enumerate(first.values)}
        compared_names = [name for name, value in known.items() if value.enough and second.values[places[name]].enough]
        columns = (
            _columns(first.numbers, places_of_first, compared_names),
            _columns(second.numbers, places, compared_names),
        )
        found = (unpaired if self.unpaired else paired)(*columns, self.level)
        differences = {name: each for name, each in zip(compared_names, found, strict=True) if each is not None}
        lacking = [value for name, value in known.items() if name not in differences or value.few]
        return known, differences, lacking


def _columns(numbers: Floats, places: Mapping[str, int], names: Sequence[str]) -> Floats:
    columns: Floats = numbers[:, np.array([places[name] for name in names], int)]
    return columns


def _warnings(read: Read, lacking: Sequence[Value]) -> list[dict[str, Any]]:
    """Return the warnings of a stratum; of few rows, those that concern the comparison."""
    if read.left_out.groups == 0:
        detail = "a run was counted without groups of rows, so that there are neither intervals nor verdicts"
        return [*read.warnings, {"code": "no_groups", "detail": detail}]
    kept = [warning for warning in read.warnings if warning["code"] != "few_rows" or not read.intervals]
    return [*kept, few_rows(lacking, groups=read.left_out.groups, rows=read.rows)] if lacking else kept
