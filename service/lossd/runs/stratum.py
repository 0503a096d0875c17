"""The values of one stratum of a run, of all of its rows and of all but those of each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lossd.losses.reduction import Segments
from lossd.metrics.parts import part_of
from lossd.metrics.registry import METRICS, TASKS, Array, Better, Floats, Metric, Scale, Task, breakdown
from lossd.metrics.view import View
from lossd.request.plan import Plan
from lossd.runs.measuring import LOSS, OF_BATCH, WEIGHT
from lossd.runs.state import RunState
from lossd.runs.statistics.intervals import FEW, LEAST_IN_MEAN, enough_groups, independent
from lossd.runs.totals.reads import SumsRead, TablesRead

__all__ = ["LeftOut", "Stratum", "Value"]


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of one number of a result besides its value.

    Attributes:
        name: Its name, such as ``f1.macro`` or ``f1.per_class.3``.
        scale: Where it lies.
        better: Which way is better.
        enough: Whether enough rows are behind it for an interval.
        few: The classes of which fewer rows are behind it than a value of the class needs.
        right: How many independent rows agree that it is 1; infinite if they do not all agree.
        wrong: How many agree that it is 0.
        share: The part of the value that those rows make: 1 over the number of classes for a mean over classes.
    """

    name: str
    scale: Scale
    better: Better | None
    enough: bool = True
    few: tuple[int, ...] = ()
    right: float = math.inf
    wrong: float = math.inf
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The values that may have intervals.

    Attributes:
        values: What is known of each of the L values.
        numbers: (1 + G, L): of all rows, then of all but those of each group that has rows; NaN if undefined.
        groups: How many groups have rows.
    """

    values: list[Value]
    numbers: Floats
    groups: int


class Stratum:
    """One stratum of a run.

    Args:
        state: The run, which has counted rows.
        plan: The plan of its definition's request.
        number: The stratum's number among those of the definition.
        groups: In how many groups rows are told apart; 0 for all rows only.
        whole: The same stratum without groups, whose tables of all rows are used again.
    """

    def __init__(self, state: RunState, plan: Plan, number: int, groups: int, *, whole: Stratum | None = None) -> None:
        assert state.facts is not None
        self.facts = state.facts
        self.plan = plan
        self.groups = groups
        self.clustered = bool(getattr(self.facts, "clustered", False))
        self.totals = {key: total.read(number, groups) for key, total in state.totals.items()}
        for key, total in self.totals.items():
            if whole is not None and isinstance(total, TablesRead):
                total.share(whole.totals[key])
        by_group = state.rows_by_group(number)
        self.rows = int(by_group.sum())
        self.by_group: Array = by_group.reshape(-1, groups).sum(0) if groups else by_group

    # Values

    def answers(self, names: Sequence[str]) -> tuple[list[dict[str, Any]], list[list[str]]]:
        """Return the metrics of each set of rows, and the codes of the warnings of each.

        Args:
            names: The metrics, each a function of parts.
        """
        return breakdown(self.plan.task, names, self.view)

    @cached_property
    def view(self) -> View:
        """The totals as the view of requests without tensors, one for each set of rows."""
        cls, facts = TASKS[self.plan.task], self.facts
        exponent = None
        if facts.weighted:
            exponent = int(np.frexp(self.sums(WEIGHT).numbers(None)[0])[1])
        view = View(
            tensors={},
            segments=Segments([1] * (1 + self.groups)),
            activation=facts.activation,
            sample_weight=None,
            ignore_index=None,
            parameters=self.plan.parameters,
            options=self.plan.metric_options.model_dump(exclude={"names", "task"}),
            alone=self.plan.loss is None,
            dtypes=facts.dtypes,
            classes=facts.classes,
            exponent=exponent,
        )
        grouped: dict[str, dict[str, Any]] = {}
        for key, total in self.totals.items():
            part, _, contribution = key.partition(".")
            if hasattr(cls, part):
                grouped.setdefault(part, {})[contribution] = total
        counted = {part: part_of(cls, part).of_totals(found, exponent) for part, found in grouped.items()}
        return view._replace(counted=counted)

    def sums(self, key: str) -> SumsRead:
        """Return one of the totals."""
        total = self.totals[key]
        assert isinstance(total, SumsRead)
        return total

    def loss(self) -> Floats:
        """Return the loss of each set of rows; of the reduction sum, the mean of a set times the size of all rows."""
        size = self.sums(f"{LOSS}.size").numbers(None)
        means = np.where(size == 0, 0.0, self.sums(f"{LOSS}.sum").over(self.sums(f"{LOSS}.size")))
        if self.plan.reduction != "sum":
            return means  # 0 where nothing counts, as of an evaluation
        sums: Floats = means * float(size[0])
        sums[0] = self.sums(f"{LOSS}.sum").numbers(None)[0]
        return sums

    def of_batches(self, name: str) -> float | None:
        """Return the mean of the batches' values of a metric; None without any."""
        size = self.sums(f"{OF_BATCH}{name}.size")
        return None if size.numbers(None)[0] == 0 else float(self.sums(f"{OF_BATCH}{name}.sum").over(size)[0])

    # What is behind them

    def left_out(self, names: Sequence[str]) -> LeftOut:
        """Return the values that may have intervals: the loss's and those of metrics that say where they lie.

        Args:
            names: The metrics.
        """
        values, columns = list[Value](), list[Floats]()
        if self.plan.loss is not None and self.plan.loss.kind == "rows":
            values.append(Value("loss", "real", "lower"))
            columns.append(self.loss()[:, None])
        known = METRICS.get(self.plan.task, {})
        smooth = [name for name in names if known[name].interval is not None and known[name].reads is not None]
        if smooth:
            task = TASKS[self.plan.task](self.view)
            documents, _ = self.answers(smooth)
            for name in smooth:
                fields = dict(_columns(name, [document[name] for document in documents]))
                each = fields.get(f"{name}.per_class")
                for label, column in fields.items():
                    values += self._values(task, known[name], label, column[0], None if each is None else each[0])
                    columns.append(column)
        kept = np.append(True, self.by_group > 0)
        numbers = np.concatenate(columns, 1)[kept] if columns else np.empty((int(kept.sum()), 0))
        return LeftOut(values, numbers, len(numbers) - 1)

    def _values(self, task: Task, metric: Metric, label: str, found: Floats, each: Floats | None) -> Iterator[Value]:
        """Yield what is known of the values of one field of a metric's answer.

        Args:
            task: The task of all sets of rows.
            metric: The metric.
            label: The field's name, such as ``f1.macro``, or the metric's name.
            found: The values of all rows, (1,), or one for each class.
            each: The metric's value of each class; None if they are not listed.
        """
        field = label.removeprefix(metric.name).removeprefix(".")
        if metric.cases is None or field in ("micro", "weighted"):
            rows = self.rows if not self.clustered else float(self._independent(self.by_group > 0))
            yield _value(label, metric, found[0], rows)
            return
        counts: Array = getattr(task, metric.cases)
        rows_of, few, scarce = self._cases(task, counts)
        if field == "per_class":
            for k, value in enumerate(found.tolist()):
                yield _value(f"{label}.{k}", metric, value, rows_of[k], enough=not few[k], few=(k,) if few[k] else ())
        elif len(rows_of) == 1:
            yield _value(label, metric, found[0], rows_of[0], enough=not few[0])
        else:
            yield _value_of_mean(label, metric, rows_of, few, scarce, each)

    def _cases(self, task: Task, counts: Array) -> tuple[Floats, Array, Array]:
        """Return how many independent rows a value of each class is made of, and whether they are few, or very few.

        Args:
            task: The task of all sets of rows.
            counts: How many entries, (1 + G, K).
        """
        # An entry is a row of its own unless rows have several entries, belong to clusters or have weights.
        entries: Any = task.actual + task.negatives  # type: ignore[attr-defined]
        single = not self.clustered and not self.facts.weighted and entries[0, 0] == self.rows
        holding = (counts[1:] != counts[:1]).sum(0)
        rows = np.minimum(np.inf if self.facts.weighted else counts[0].astype(float), self.rows)
        spread = holding < enough_groups(self.groups)
        if single:
            return rows, (rows < FEW) | spread, rows < LEAST_IN_MEAN
        rows = np.where(holding > 0, np.minimum(rows, independent(holding, self.groups)), 0)
        return rows, (rows < FEW / 2) | spread, holding < LEAST_IN_MEAN

    def _independent(self, holding: Array) -> Floats:
        return independent(holding.sum(), self.groups)


def _columns(name: str, answers: Sequence[Any]) -> Iterator[tuple[str, Floats]]:
    """Yield each field of a metric's answers, (B, 1), or (B, K) of one with a value for each class."""
    if isinstance(answers[0], Mapping):
        for field in answers[0]:
            yield from _columns(f"{name}.{field}", [answer[field] for answer in answers])
    else:
        yield name, np.array(answers, float).reshape(len(answers), -1)


def _value(
    label: str, metric: Metric, value: float, rows: float, *, enough: bool = True, few: tuple[int, ...] = ()
) -> Value:
    """Return what is known of a value that is no mean over classes."""
    right, wrong = (float(rows) if value == end else math.inf for end in (1, 0))
    return Value(label, _scale(metric), metric.better, enough, few, right, wrong)


def _scale(metric: Metric) -> Scale:
    assert metric.interval is not None
    return metric.interval


def _value_of_mean(
    label: str, metric: Metric, rows_of: Floats, few: Array, scarce: Array, each: Floats | None
) -> Value:
    """Return what is known of a mean over the classes that have rows; arguments are those of :meth:`Stratum._cases`.

    Of the classes whose rows all agree, which the spread of the groups tells nothing of, the one with the fewest rows
    is the one that could change the mean the most. If values of classes are not listed, it is taken from all classes.
    """
    present = rows_of > 0
    ends = (present, present) if each is None else (present & (each == 1), present & (each == 0))
    right, wrong = (float(rows_of[alike].min(initial=math.inf)) for alike in ends)
    share = 1 / max(1, int(present.sum()))
    enough = not bool((scarce & present).any())
    return Value(
        label, _scale(metric), metric.better, enough, tuple(np.flatnonzero(few & present).tolist()), right, wrong, share
    )
