"""``@task`` and ``@metric``: the metrics, and the tasks that they belong to.

A task is a class. It is built once per batch from a :class:`View`, computes on the device what its metrics share
(counts, sums), and provides it as NumPy arrays with one entry per request. A metric is a small function of that object.
It returns one JSON value per request: None if undefined, the strings "NaN" and "Infinity" if not finite.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lossd.cost import Cost
from lossd.lazy_torch import Tensor, torch
from lossd.losses.names import meaning
from lossd.losses.reduction import Segments
from lossd.losses.registry import Input, closest
from lossd.metrics.combinations import Combinations
from lossd_client.errors import Fault, InvalidRequest
from lossd_client.wire.quoting import quoted

__all__ = [
    "METRICS",
    "TASKS",
    "Metric",
    "Scale",
    "Task",
    "View",
    "breakdown",
    "byte_ns",
    "check_classes",
    "check_options",
    "check_task",
    "closest_metrics",
    "cost",
    "costs",
    "describe",
    "from_scores",
    "inputs",
    "metric",
    "resolve",
    "spell",
    "task",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SCORE_BYTES, SORTED_NS, COMPARED_NS = 64, 300, 100
"""Measured on one core: the bytes and nanoseconds of a sorted score, and the nanoseconds of a compared pair."""

COUNTED_BYTES, COUNTED_NS = 512, 400
"""Measured on one core: the bytes and nanoseconds of the counts of a class and of the ratios of these."""

Better = Literal["higher", "lower"]

Scale = Literal["unit", "signed", "positive", "real"]
"""Where a metric's values lie: in [0, 1], in [-1, 1], from 0 on, or anywhere."""

COARSE = ("bfloat16", "float16", "float32")
"""Float dtypes coarser than float64, the coarsest first."""


class View(NamedTuple):
    """The tensors of a batch in the form that metrics read, checked and on the device.

    Attributes:
        tensors: The requests' inputs by name, concatenated along their rows, (R, ...); floats in the compute dtype,
            integers in their own dtype. Without ``sample_weight`` and ``cotangent``.
        segments: The rows of each request.
        activation: The domain of ``prediction``: real, logits, log_probability, probability or predicted.
        sample_weight: (R,) float64, or None.
        left_out: Returns the entries that a mask leaves out, see ``ignored``; None if there is no mask.
        ignore_index: The class that does not count, or None.
        parameters: The loss's parameters that are equal in the whole batch.
        options: The request's ``metrics`` object with its defaults.
        numbers: The other parameters: each request's value, B of them.
        counted: The parts that a compiled pass or a run has already counted, by the task's name for them.
        alone: Whether no loss is evaluated, so that only the options say what predictions are.
        kernels: Compiled functions that count in one call what takes many tensor operations, by name; those at hand.
        dtypes: The dtypes in which tensors were sent, by name; a missing name has the tensor's own dtype.
        classes: The number of classes of a run, which has no tensors to tell it.
        exponent: Sums of weights in a run's ``counted`` are divided by two to this; None if no sample is weighted.
        combinations: Which rows a run counts together; None of an evaluation.
    """

    tensors: Mapping[str, Tensor]
    segments: Segments
    activation: str
    sample_weight: Tensor | None
    ignore_index: int | None
    parameters: Mapping[str, Any]
    options: Mapping[str, Any]
    numbers: Mapping[str, Sequence[float]] = MappingProxyType({})
    counted: Mapping[str, Array] = MappingProxyType({})
    alone: bool = False
    kernels: Mapping[str, Callable[..., Any]] = MappingProxyType({})
    dtypes: Mapping[str, str] = MappingProxyType({})
    classes: int | None = None
    exponent: int | None = None
    combinations: Combinations | None = None
    left_out: Callable[[], Tensor] | None = None

    @property
    def ignored(self) -> Tensor | None:
        """The entries that do not count by a mask, (R, I) or (R, 1) bool, or None.

        Computed at first use, because a compiled pass has counted all that most requests ask for.
        """
        return None if self.left_out is None else self.left_out()

    @property
    def placed(self) -> Combinations:
        """Which rows a run counts together."""
        assert self.combinations is not None, "a run says what it counts together"
        return self.combinations

    @property
    def merged(self) -> bool:
        """Whether this is a run: parts without tensors."""
        return not self.tensors

    def sent(self, *names: str) -> str:
        """Return the dtype in which these tensors were sent, the coarsest of several; float64 for integers."""
        found = {self.dtypes.get(name) or str(self.tensors[name].dtype).removeprefix("torch.") for name in names}
        return next((dtype for dtype in COARSE if dtype in found), "float64")

    def computed(self, *names: str) -> str:
        """Return the dtype whose rounding affects results of these tensors: float64 if all are, else float32."""
        return "float64" if self.sent(*names) == "float64" else "float32"

    def number(self, name: str, default: float, ndim: int) -> Tensor | float:
        """Return a numeric parameter of the loss: a number, or (R, 1, ...) with ``ndim`` axes if requests differ."""
        values_by_request = self.numbers.get(name) or [self.parameters.get(name, default)]
        if values_by_request.count(values_by_request[0]) == len(values_by_request):
            return float(values_by_request[0])
        values = torch.tensor(values_by_request, dtype=torch.float64, device=self.segments.device)
        return self.segments.spread(values, ndim)


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
        if undefined is not None and undefined.any():
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


def spell(values: Array) -> list[Any]:
    """Return the array as nested lists, with the strings NaN, Infinity and -Infinity for non-finite numbers."""
    answer: list[Any] = values.tolist()
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


def check_task(name: str, *, instead_of: str | None = None) -> None:
    """Check that a task exists, and may replace the loss's own.

    Raises:
        InvalidRequest: It does not exist, or does not fit the loss.
    """
    exchangeable = ({"binary", "multilabel"}, {"multiclass", "segmentation"}, {"pairs", "cosine_pairs"})
    pointer = "/task" if instead_of is None else "/metrics/task"
    if name not in TASKS:
        near = closest(name, TASKS)
        hint = f"did you mean {near[0]}? GET /v1/metrics lists them all" if near else f"there are {', '.join(TASKS)}"
        detail = f"there is no task named {quoted(name)}; {hint}"
    elif instead_of in (None, name) or any({name, instead_of} <= group for group in exchangeable):
        return
    else:
        detail = f"the metrics of task {quoted(name)} do not fit inputs of task {instead_of!r}"
    raise InvalidRequest(detail, errors=[Fault(pointer=pointer, detail=detail)])


def resolve(task_name: str, names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the requested metrics: the task's defaults for None; "default" in a list stands for the defaults.

    Raises:
        InvalidRequest: The task has no metric of a name; the detail names the closest ones.
    """
    known = METRICS.get(task_name, {})
    defaults = [m.name for m in known.values() if m.default]
    wanted: list[str] = []
    for position, name in enumerate(defaults if names is None else names):
        if name == "default":
            wanted.extend(defaults)
        elif name in known:
            wanted.append(name)
        else:
            near = closest_metrics(name, known)
            proposed = f"did you mean {' or '.join(near)}? GET /v1/metrics lists them all"
            hint = proposed if near else f"there are {', '.join(known)}"
            detail = f"the task {task_name} has no metric named {quoted(name)}; {hint}"
            raise InvalidRequest(detail, errors=[Fault(pointer=f"/metrics/names/{position}", detail=detail)])
    return tuple(dict.fromkeys(wanted))


def closest_metrics(name: str, known: Collection[str]) -> list[str]:
    """Return the known metric that other libraries call by a name that none has, else up to three similar names."""
    meant = meaning(name).metric
    return [meant] if meant is not None and meant in known else closest(name, known)


def inputs(task_name: str, options: Mapping[str, Any]) -> tuple[Input, ...]:
    """Return a task's inputs when metrics are computed without a loss."""
    return TASKS[task_name].inputs(options)


def pairs(task_name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many pairs of entries a task's metrics compare, if there are more pairs than entries."""
    return TASKS[task_name].compared(shapes)


def cost(
    task_name: str, names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], predicted_classes: int | None = None
) -> Cost:
    """Return the cost of a task's metrics beyond reading the tensors.

    Args:
        task_name: The task.
        names: The metrics' names.
        shapes: The shapes of the tensors.
        predicted_classes: The number of classes of which predictions are indices: no tensor's size tells it. None if
            they are none.
    """
    if predicted_classes is not None:
        return Cost(COUNTED_BYTES * predicted_classes, COUNTED_NS * predicted_classes)
    sorts = sum(METRICS[task_name][name].sorts for name in names)
    if TASKS[task_name].sorts_once:
        sorts = min(sorts, 1)
    compared, scores = TASKS[task_name].compared(shapes), max(math.prod(shape) for shape in shapes.values())
    return Cost(bool(sorts) * SCORE_BYTES * scores, COMPARED_NS * compared + sorts * SORTED_NS * scores)


def byte_ns(task_name: str, names: Sequence[str]) -> float:
    """Return about how many nanoseconds a task's metrics take for each byte of the tensors."""
    return max((METRICS[task_name][name].byte_ns for name in names), default=0.0)


def costs(task_name: str, names: Sequence[str]) -> bool:
    """Return whether a task's metrics take more than reading the tensors."""
    return TASKS[task_name].compares or any(METRICS[task_name][name].sorts for name in names)


def check_options(task_name: str, options: Mapping[str, Any]) -> None:
    """Check that the options apply to a task.

    Raises:
        InvalidRequest: An option does not apply; ``errors`` points at it.
    """
    if task_name not in TASKS:
        return
    averaged = getattr(TASKS[task_name], "averaged", False)
    if isinstance(options.get("threshold"), list) and "threshold" in TASKS[task_name].options and not averaged:
        detail = f"threshold is a list, one for each label; the task {task_name} has no labels: send one threshold"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/threshold", detail=detail)])
    for name in options.get("names") or ():
        for option, among in METRICS[task_name][name].needs.items() if name in METRICS[task_name] else ():
            if options.get(option) is None:
                detail = f"{name} has no value without metrics.{option}: set it to {among}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/metrics/{option}", detail=detail)])
    if options.get("classes") is not None:
        _check_without_scores(task_name, options.get("names") or ())
    TASKS[task_name].check(options)


def _check_without_scores(task_name: str, names: Sequence[str]) -> None:
    """Check that the task takes class indices as predictions, and that each metric is computed from these."""
    of_scores = TASKS[task_name].of_scores
    if not of_scores:
        takers = " and ".join(name for name, cls in TASKS.items() if cls.of_scores)
        decides = "threshold" in TASKS[task_name].options
        remedy = " and set metrics.from_logits to false for decisions of 0 and 1" if decides else ""
        detail = f"metrics.classes is for the tasks {takers}, which take predicted classes; leave it out{remedy}"
        raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/classes", detail=detail)])
    refused = from_scores(task_name)
    faults = [
        Fault(pointer=f"/metrics/names/{position}", detail=f"{name} is computed from scores")
        for position, name in enumerate(names)
        if name in refused
    ]
    if faults:
        needing = " and ".join(fault["detail"].partition(" ")[0] for fault in faults)
        raise InvalidRequest(
            f"{needing} cannot be computed from predicted classes, as metrics.classes says prediction holds; send a "
            "score for each class without metrics.classes, or name other metrics",
            errors=faults,
        )


def from_scores(task_name: str) -> list[str]:
    """Return a task's metrics that class indices in place of scores do not have; none if it takes no class indices."""
    of_scores = TASKS[task_name].of_scores
    return [name for name, entry in METRICS[task_name].items() if not of_scores.isdisjoint(entry.reads or ())]


def check_classes(task_name: str, names: Sequence[str], options: Mapping[str, Any], classes: int) -> None:
    """Check that the options apply to the metrics of so many classes.

    Raises:
        InvalidRequest: An option does not apply; ``errors`` points at it.
    """
    TASKS[task_name].check_classes(names, options, classes)


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
