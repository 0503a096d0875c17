"""``@task`` and ``@metric``: the metrics, and the tasks that they belong to.

A task is a class. It is built once per batch from a :class:`View`, computes on the device what its metrics share
(counts, sums), and provides it as NumPy arrays with one entry per request. A metric is a small function of that object.
It returns one JSON value per request: None if undefined, the strings "NaN" and "Infinity" if not finite.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from lossd.losses.registry import Input
from lossd.metrics.view import View

__all__ = [
    "METRICS",
    "TASKS",
    "Metric",
    "Scale",
    "Task",
    "breakdown",
    "describe",
    "inputs",
    "metric",
    "spell",
    "task",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

Better = Literal["higher", "lower"]

Scale = Literal["unit", "signed", "positive", "real"]
"""Where a metric's values lie: in [0, 1], in [-1, 1], from 0 on, or anywhere."""


class Task:
    """The base class of every task, whose object its metrics share.

    Attributes:
        options: The options of the ``metrics`` object that every metric of the task reads.
        compares: Whether it compares pairs of entries.
        sorts_once: Whether all its metrics that sort read one sorted list.
        base: The parts that the task itself reads, whatever the metric.
        of_scores: The parts that class indices in place of scores do not have; empty if it takes no class indices.
        undefined: For each request, the metrics that are 0/0 and their class or label indices: [1], the positive class,
            if the task has only that one; [] if the metric belongs to no class.
    """

    options: ClassVar[tuple[str, ...]] = ("zero_division",)
    compares: ClassVar[bool] = False
    sorts_once: ClassVar[bool] = False
    base: ClassVar[tuple[str, ...]] = ()
    of_scores: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, view: View) -> None:
        self.view = view if view.merged else self.read(view)
        self.count = view.segments.count
        counts_as = view.options.get("zero_division")
        self.zero_division = None if counts_as is None else float(counts_as)
        self.undefined: list[dict[str, list[int]]] = [{} for _ in range(self.count)]

    def by_kernel(self, name: str) -> Any:
        """Return a part of a batch that a compiled function counts; None if none does."""
        return None

    def warning_parts(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the parts that the task's warnings read, given the requested metrics."""
        return ()

    def read(self, view: View) -> View:
        """Return the view that the task computes from."""
        return view

    @classmethod
    def inputs(cls, options: Mapping[str, Any]) -> tuple[Input, ...]:
        """Return the task's inputs when metrics are computed without a loss."""
        raise NotImplementedError

    @classmethod
    def compared(cls, shapes: Mapping[str, tuple[int, ...]]) -> int:
        """Return how many pairs of entries are compared, if there are more pairs than entries."""
        return 0

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Check that the options apply to this task.

        Raises:
            InvalidRequest: An option does not apply; ``errors`` points at it.
        """

    @classmethod
    def check_classes(cls, names: Sequence[str], options: Mapping[str, Any], classes: int) -> None:
        """Check that the options apply to so many classes.

        Raises:
            InvalidRequest: An option does not apply; ``errors`` points at it.
        """

    @property
    def listed(self) -> bool:
        """Whether averages over classes come with each class's value."""
        return True

    def warnings(self, names: Sequence[str]) -> list[list[str]]:
        """Return the warning codes of each request, given the requested metrics."""
        return [[] for _ in range(self.count)]

    def resemble_probabilities(self) -> list[bool]:
        """Return whether each request's scores look like probabilities; False if the task has no such scores."""
        return [False] * self.count

    def numbers(
        self, name: str, values: Array, undefined: Array | None = None, classes: Sequence[int] = ()
    ) -> list[Any]:
        """Return one number per request; where it is undefined, None or ``zero_division``, and record that.

        Args:
            name: The metric's name.
            values: The values, (B,); anything where undefined.
            undefined: Which values are undefined, (B,) bool; None if none is.
            classes: The classes to record.
        """
        answer = spell(values)
        if undefined is not None and True in undefined.tolist():
            for position in np.flatnonzero(undefined).tolist():
                answer[position] = self.zero_division
                self.undefined[position][name] = list(classes)
        return answer

    def quotients(self, name: str, numerator: Array, denominator: Array, classes: Sequence[int] = ()) -> list[Any]:
        """Return one ratio per request, (B,) over (B,); 0/0 is undefined."""
        answer: list[Any] = []
        # Numbers instead of arrays: NumPy takes several times as long for the few requests of a batch.
        for position, (above, below) in enumerate(zip(numerator.tolist(), denominator.tolist(), strict=True)):
            if below == 0:
                answer.append(self.zero_division)
                self.undefined[position][name] = list(classes)
            else:
                answer.append(_spelled(above / below))
        return answer


FEW = 64
"""Up to so many numbers, Python takes less time for them than NumPy."""


def spell(values: Array) -> list[Any]:
    """Return the array as nested lists, with the strings NaN, Infinity and -Infinity for non-finite numbers."""
    answer: list[Any] = values.tolist()
    if values.ndim == 1 and len(answer) <= FEW:
        return answer if all(map(math.isfinite, answer)) else list(map(_spelled, answer))
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return answer
    for index in np.argwhere(~np.isfinite(values)).tolist():
        inner = answer
        for step in index[:-1]:
            inner = inner[step]
        inner[index[-1]] = _spelled(inner[index[-1]])
    return answer


def _spelled(number: float) -> float | str:
    """Return a number, or its name if JSON has no such number."""
    if math.isfinite(number):
        return number
    return "NaN" if number != number else "Infinity" if number > 0 else "-Infinity"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of one task.

    Attributes:
        name: A name that is unique in the task.
        task: The task's name.
        default: Whether it is a default metric of the task.
        function: Returns one JSON value per request, given the task's object.
        options: The options it reads besides the task's.
        documentation: Its docstring.
        sorts: Whether it sorts the scores, which takes longer than all else.
        byte_ns: About how many nanoseconds of one core it takes for each byte of the tensors. What several have in
            common is computed once.
        reads: The parts it is a function of, besides the task's ``base``; None if it is a function of a whole batch,
            such as the neighbours of each row, so that a run has no value of it.
        better: Which way is better: "higher", "lower", or None for neither.
        interval: Where its values lie, if a run states an interval for it: "unit", "signed", "positive" or "real". None
            for what has no interval: counts, curves, lists, thresholds, extremes, quantiles, and estimates whose bias
            is as large as their error.
        cases: The task's attribute that says how many entries of each class a value is made of, (B, K); None if it
            is made of all that count.
        version: Raised when a number could change.
        needs: The options that have no default and must be given, and what each may be.
    """

    name: str
    task: str
    default: bool
    function: Callable[[Any], Sequence[Any]]
    options: tuple[str, ...]
    documentation: str
    sorts: bool = False
    byte_ns: float = 8
    reads: tuple[str, ...] | None = ()
    better: Better | None = None
    interval: Scale | None = None
    cases: str | None = None
    version: int = 1
    needs: Mapping[str, str] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The docstring's first line."""
        return self.documentation.partition("\n")[0]


TASKS: dict[str, type[Task]] = {}
"""Every task's class, by name."""

METRICS: dict[str, dict[str, Metric]] = {}
"""Every task's metrics, by name, in the order of the answer."""

F = TypeVar("F", bound=Callable[[Any], Sequence[Any]])
T = TypeVar("T", bound=type[Task])


def task(*names: str) -> Callable[[T], T]:
    """Register a task's class under one or several names."""

    def register(cls: T) -> T:
        for name in names:
            TASKS[name] = cls
            METRICS.setdefault(name, {})
        return cls

    return register


def metric(
    *tasks: str,
    interval: Scale | None,
    default: bool = False,
    name: str | None = None,
    options: tuple[str, ...] = (),
    sorts: bool = False,
    byte_ns: float = 8,
    reads: tuple[str, ...] | None = (),
    better: Better | None = None,
    cases: str | None = None,
    version: int = 1,
    needs: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Register a metric for one or several tasks, under its function's name unless ``name`` says otherwise."""

    def register(function: F) -> F:
        key = name or function.__name__
        documentation = inspect.getdoc(function) or ""
        for task_name in tasks:
            METRICS.setdefault(task_name, {})[key] = Metric(
                key,
                task_name,
                default,
                function,
                options,
                documentation,
                sorts,
                byte_ns,
                reads,
                better,
                interval,
                cases,
                version,
                needs,
            )
        return function

    return register


def inputs(task_name: str, options: Mapping[str, Any]) -> tuple[Input, ...]:
    """Return a task's inputs when metrics are computed without a loss."""
    return TASKS[task_name].inputs(options)


def _average_options(task_name: str) -> tuple[str, ...]:
    """Return the options of tasks that average over classes or labels."""
    return ("per_class",) if getattr(TASKS[task_name], "averaged", False) else ()


def describe(only: str | None = None) -> list[dict[str, Any]]:
    """Return every metric, or one task's: name, task, default, texts, options, better side, interval and version."""
    return [
        {
            "name": entry.name,
            "task": entry.task,
            "default": entry.default,
            "summary": entry.summary,
            "documentation": entry.documentation,
            "options": [*TASKS[entry.task].options, *_average_options(entry.task), *entry.options],
            "better": entry.better,
            "interval": entry.interval,
            "version": entry.version,
        }
        for task_name, known in METRICS.items()
        if only in (None, task_name)
        for entry in known.values()
    ]


def breakdown(task_name: str, names: Sequence[str], view: View) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Return each request's metrics with the task's name and the undefined classes, and each request's warnings."""
    known = METRICS[task_name]
    with np.errstate(all="ignore"):  # non-finite values are valid results
        measured = TASKS[task_name](view)
        columns = [known[name].function(measured) for name in names]
        warnings = measured.warnings(names)
    averages = not measured.listed and any(isinstance(column[0], dict) and "macro" in column[0] for column in columns)
    if averages and view.options.get("per_class") is None:
        warnings = [[*codes, "classes_not_listed"] for codes in warnings]
    answers: list[dict[str, Any]] = []
    for values, undefined in zip(zip(*columns, strict=True), measured.undefined, strict=True):
        answer: dict[str, Any] = {"task": task_name, **dict(zip(names, values, strict=True))}
        # Metrics that are computed together are also recorded together, even if only one is requested.
        if undefined and (recorded := {name: undefined[name] for name in names if name in undefined}):
            answer["undefined"] = recorded
        answers.append(answer)
    return answers, warnings
