"""The result of a run: the task's metrics of its totals, computed and rounded once, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossd.evaluation.diagnostics import warning
from lossd.metrics.checks import resolve
from lossd.metrics.registry import METRICS, Metric
from lossd.request.plan import Plan
from lossd.runs.bounds import bounds_of
from lossd.runs.measuring import OF_BATCH
from lossd.runs.result import RunResult
from lossd.runs.rows.strata import groups_of, strata_of
from lossd.runs.state import RunState
from lossd.runs.statistics.intervals import FEW, Interval, biased, enough_groups, interval, standard_errors, unseen
from lossd.runs.stratum import LeftOut, Stratum, Value
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.messages import Record
from lossd_client.wire import json

__all__ = [
    "LEVEL",
    "StratumResult",
    "few_rows",
    "headline",
    "intervals_of",
    "names_read",
    "readable_names",
    "result_of",
    "told_apart",
]

LEVEL = 0.95
"""The level of intervals unless another is asked for."""

MOST_NAMED = 10
"""How many classes a warning's sentence names."""


def result_of(
    state: RunState, plan: Plan, *, level: float = LEVEL, metrics: Sequence[str] | None = None, slices: bool = True
) -> RunResult:
    """Return the score of the rows that a run has counted; it changes nothing.

    Args:
        state: The run.
        plan: The plan of its definition's request.
        level: The level of the intervals, in (0, 1).
        metrics: The metrics: any of the task whose parts the run has counted; None for those of the definition.
        slices: Whether the values of slices are computed.

    Raises:
        InvalidRequest: No row was counted, or a metric is not among those that can be read.
    """
    names = names_read(state, plan, metrics)
    groups = groups_of(state.definition)
    strata = strata_of(state.definition) if slices else [{}]
    whole, *parts = [StratumResult.of(state, plan, number, names, groups, level) for number in range(len(strata))]
    found = [{"slice": labels, **part.to_dict()} for labels, part in zip(strata[1:], parts, strict=True)]
    worst, gap = _extremes(plan.task, strata[1:], parts)
    document = json.numeric({"slices": found, "worst": worst, **whole.to_dict()})
    return RunResult(
        loss=whole.loss,
        metrics=Record(document["metrics"]),
        level=level,
        groups=groups,
        intervals=Record(document["intervals"]),
        slices=[Record(entry) for entry in document["slices"]],
        worst=Record(document["worst"]),
        gap=Record(gap),
        counted=Record({"rows": state.rows}),
        missing=[[gap.start, gap.stop] for gap in state.missing()],
        bounds=Record(document["bounds"]),
        targets=state.targets,
        pairing=getattr(state, "pairing", None),
        digest=state.digest,
        readable=readable_names(state, plan),
        warnings=[Record(entry) for entry in document["warnings"]],
    )


def names_read(state: RunState, plan: Plan, metrics: Sequence[str] | None) -> tuple[str, ...]:
    """Return the metrics that are asked for.

    Raises:
        InvalidRequest: No row was counted, there is no such metric, or the run has not counted what it is made of.
    """
    facts = state.facts
    if facts is None:
        raise InvalidRequest("the run has counted no rows")
    if metrics is None:
        return facts.names
    names = resolve(plan.task, metrics)
    known = readable_names(state, plan)
    if missing := [name for name in names if name not in known]:
        rest = ", ".join(known) or "none"
        detail = f"the run has not counted what {', '.join(missing)} is made of; it can answer {rest}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics", detail=detail)])
    return names


def readable_names(state: RunState, plan: Plan) -> list[str]:
    """Return the metrics of the task whose parts the run has counted; none before the first row."""
    parts = {key.partition(".")[0] for key in state.totals}
    has_metrics = state.facts is not None and bool(state.facts.names)

    def is_counted(name: str, metric: Metric) -> bool:
        if any(getattr(plan.metric_options, option) is None for option in metric.needs):
            return False
        if metric.reads is None:
            return f"{OF_BATCH}{name}.sum" in state.totals
        return has_metrics and parts.issuperset(metric.reads)

    return [name for name, metric in METRICS.get(plan.task, {}).items() if is_counted(name, metric)]


@dataclass(frozen=True, slots=True)
class StratumResult:
    """The values of one stratum, as JSON values.

    Attributes:
        rows: How many rows were counted.
        loss: The loss; None without one.
        metrics: The metrics by name, in the form of an evaluation.
        left_out: The values that may have intervals.
        intervals: The intervals by the value's name.
        bounds: How far areas and quantiles of cut tables may be from the exact ones.
        warnings: The warnings, each with ``code`` and ``detail``.
    """

    rows: int
    loss: float | None
    metrics: Mapping[str, Any]
    left_out: LeftOut
    intervals: Mapping[str, Interval]
    bounds: Mapping[str, Any]
    warnings: list[dict[str, Any]]

    @classmethod
    def of(
        cls, state: RunState, plan: Plan, number: int, names: Sequence[str], groups: int, level: float
    ) -> StratumResult:
        """Return the values of a stratum; arguments are those of :class:`Stratum` and :func:`result_of`."""
        stratum = Stratum(state, plan, number, 0)
        none = LeftOut([], np.empty((1, 0)), 0)
        if stratum.rows == 0:
            return cls(0, None, {}, none, {}, {}, [few_rows([], groups=0, rows=0)])
        found, codes = _metrics(stratum, names)
        flagged = any(METRICS[plan.task][name].reads is None for name in names)
        loss = None
        if plan.loss is not None:
            loss = float(stratum.loss()[0])
            flagged |= plan.loss.kind != "rows"
        warnings: list[dict[str, Any]] = [warning(code) for code in [*codes, *(["depends_on_batches"] * flagged)]]
        left_out, intervals = none, dict[str, Interval]()
        if groups:
            left_out = Stratum(state, plan, number, groups, whole=stratum).left_out(names)
            if told_apart(stratum.rows, left_out.groups, groups):
                intervals = intervals_of(left_out, level)
                lacking = [value for value in left_out.values if value.few or not value.enough]
                lacking += _biased(left_out)
                if lacking:
                    warnings.append(few_rows(lacking, groups=left_out.groups, rows=stratum.rows))
            else:
                warnings.append(few_rows([], groups=left_out.groups, rows=stratum.rows))
        bounds = bounds_of(stratum, names, found)
        return cls(stratum.rows, loss, found, left_out, intervals, bounds, warnings)

    def to_dict(self) -> dict[str, Any]:
        """Return the values as a document."""
        return {
            "counted": {"rows": self.rows},
            **({} if self.loss is None else {"loss": self.loss}),
            "metrics": self.metrics,
            "intervals": {name: Record(found._asdict()) for name, found in self.intervals.items()},
            "bounds": self.bounds,
            "warnings": self.warnings,
        }


def told_apart(rows: int, filled: int, groups: int) -> bool:
    """Return whether there are enough rows, in enough groups, for intervals.

    Args:
        rows: How many rows there are.
        filled: How many groups have some.
        groups: How many groups there are.
    """
    return rows >= FEW and filled >= enough_groups(groups)


def intervals_of(left_out: LeftOut, level: float) -> dict[str, Interval]:
    """Return the intervals of values, by name, without those that have none."""
    errors = standard_errors(left_out.numbers[1:])
    skipped = biased(left_out.numbers[0], left_out.numbers[1:], errors)
    found: dict[str, Interval] = {}
    columns = zip(left_out.values, left_out.numbers[0].tolist(), errors.tolist(), skipped.tolist(), strict=True)
    for known, value, error, skip in columns:
        if known.enough and not skip:
            beyond = (0.0, 0.0)
            if known.scale == "unit":
                beyond = (known.share * unseen(known.right, level), known.share * unseen(known.wrong, level))
            one = interval(value, error, groups=left_out.groups, scale=known.scale, level=level, beyond=beyond)
            if one is not None:
                found[known.name] = one
    return found


def few_rows(lacking: Iterable[Value], *, groups: int, rows: int) -> dict[str, Any]:
    """Return the warning that values have no interval, or a doubtful one, because of few rows.

    Args:
        lacking: The values; none if that is so of all.
        groups: How many groups have rows.
        rows: How many rows there are.
    """
    lacking = list(lacking)
    if not lacking:
        detail = f"there are {rows} rows in {groups} groups, which are too few for intervals: {FEW} rows are needed"
        return {"code": "few_rows", "detail": detail}
    classes = sorted({k for value in lacking for k in value.few})
    of_all = [value for value in lacking if not value.name.endswith(tuple(f".per_class.{k}" for k in value.few))]
    names = [value.name for value in of_all if not value.few or not value.enough]
    parts = []
    if classes:
        parts.append(f"for classes with fewer than {FEW} rows: {_listed(map(str, classes))}")
    if names:
        parts.append(f"for values that few rows decide: {_listed(names)}")
    detail = f"no interval {', and '.join(parts)}"
    return {"code": "few_rows", "detail": detail, **({"classes": classes} if classes else {})}


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def _biased(left_out: LeftOut) -> list[Value]:
    errors = standard_errors(left_out.numbers[1:])
    skipped = biased(left_out.numbers[0], left_out.numbers[1:], errors)
    return [value for value, skip in zip(left_out.values, skipped.tolist(), strict=True) if skip and value.enough]


def _metrics(stratum: Stratum, names: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the metrics of a stratum's rows in the form of an evaluation, and the codes of their warnings."""
    task = stratum.plan.task
    smooth = [name for name in names if METRICS[task][name].reads is not None]
    found, codes = dict[str, Any](), list[str]()
    if smooth:
        [found], [codes] = stratum.answers(smooth)
    elif names:
        found = {"task": task}
    for name in names:
        if name not in smooth:
            found[name] = stratum.of_batches(name)
    return found, codes


def headline(task: str, loss: Any, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any, Metric | None]]:
    """Yield the numbers of a result that are no entries of lists, each with its metric; the loss first, with none.

    Args:
        task: The task.
        loss: The loss; None without one.
        metrics: The metrics in the form of an evaluation.
    """
    if loss is not None:
        yield "loss", loss, None
    for name, metric in METRICS.get(task, {}).items():
        if name in metrics:
            whole = metrics[name]
            entries = whole if isinstance(whole, Mapping) else {"": whole}
            for key, entry in entries.items():
                if not isinstance(entry, list | Mapping):
                    yield f"{name}.{key}".rstrip("."), entry, metric


def _extremes(
    task: str, labels: Sequence[Mapping[str, str]], parts: Sequence[StratumResult]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Return the worst value of each number over the values of slices, and the largest gap within one slice.

    Crossings, lists and slices of fewer than 64 rows are left out.
    """
    found: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
    better: dict[str, str] = {}
    for label, part in zip(labels, parts, strict=True):
        if len(label) == 1 and part.rows >= FEW:
            for name, value, metric in headline(task, part.loss, part.metrics):
                side = "lower" if metric is None else metric.better
                if side is not None and isinstance(value, float | int) and math.isfinite(value):
                    found.setdefault(name, []).append((value, label))
                    better[name] = side
    worst: dict[str, Any] = {}
    gaps: dict[str, float] = {}
    for name, pairs in found.items():
        value, place = (max if better[name] == "lower" else min)(pairs, key=lambda pair: pair[0])
        worst[name] = {"slice": dict(place), "value": value}
        by_slice: dict[str, list[float]] = {}
        for number, label in pairs:
            by_slice.setdefault(next(iter(label)), []).append(number)
        gaps[name] = max(max(each) - min(each) for each in by_slice.values())
    return worst, gaps
