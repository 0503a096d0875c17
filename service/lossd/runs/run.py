"""``lossd.Run``: the score of a whole data set, the same for every order and every split of its rows.

Each batch contributes to the parts of the metrics (:mod:`lossd.metrics.parts`), which are added up exactly
(:mod:`lossd.runs.totals`). The result is the task's metrics of the totals. Memory does not grow with the number of
rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import numpy as np
import torch

from lossd.arrangement import arrange_one
from lossd.evaluation.batch import TensorBatch
from lossd.evaluation.columns import columns_in
from lossd.evaluation.diagnostics import warning
from lossd.evaluation.evaluate import evaluate, measure
from lossd.job import Job, Recipe
from lossd.losses.reduction import Segments
from lossd.metrics.parts import Amounts, Contribution, part_of
from lossd.metrics.registry import COARSE, METRICS, TASKS, Task, View, breakdown
from lossd.request.planning import make_plan
from lossd.runs import identity, state, totals
from lossd.runs.fingerprint import Fingerprint
from lossd.runs.table import ROWS
from lossd.runs.totals import RunTotal, SumTotal, TableTotal
from lossd_client.errors import Fault, InvalidRequest, Problem
from lossd_client.messages import Record, compose
from lossd_client.wire import Tensor, json, safetensors

__all__ = ["Run", "RunResult"]

LABELS = ("target", "label", "similar")
"""The inputs that say what is true, which the fingerprint covers."""

AREAS = ("auroc", "average_precision")
"""The metrics whose distance from the true value is known if a table is cut."""

LEAST_LIMIT = 2

LOSS, WEIGHT, OF_BATCH = "loss", "weight", "batch."


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The score of the rows that a run has counted.

    Attributes:
        loss: The loss over all rows; None without a loss.
        metrics: The task's metrics, in the form of an evaluation: ``metrics.f1.macro``.
        counted: ``rows``: how many rows are counted.
        missing: The first ranges of rows that are not counted, [first, behind the last]; rows by position or id only.
        bounds: For each metric of a table that had to be cut: how far it may be from the exact value (``within``), and
            the leading bits of a score that were kept (``bits``).
        targets: The fingerprint of the targets, ``t1:`` and 32 hexadecimal digits; None for tasks without any.
        digest: ``s1:`` and the digest of the run's state: equal for equal definitions and rows.
        warnings: Warnings, each with ``code`` and ``detail``.
    """

    loss: float | None
    metrics: Record
    counted: Record
    missing: list[list[int]]
    bounds: Record
    targets: str | None
    digest: str
    warnings: list[Record] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values; NaN and infinities as strings."""
        document = {
            **({} if self.loss is None else {"loss": self.loss}),
            "metrics": self.metrics,
            "counted": self.counted,
            "missing": self.missing,
            "bounds": self.bounds,
            "targets": self.targets,
            "digest": self.digest,
            "warnings": self.warnings,
        }
        return cast("dict[str, Any]", json.finite(document))


@dataclass
class _Facts:
    """What batches have in common.

    Attributes:
        names: The names of the metrics.
        classes: The number of classes, or None.
        activation: What the task reads scores as.
        weighted: Whether rows have weights.
        dtypes: The coarsest dtype that each input was sent in.
    """

    names: tuple[str, ...]
    classes: int | None
    activation: str
    weighted: bool
    dtypes: dict[str, str]

    def check(self, other: _Facts) -> None:
        """Check that a batch, or another run, fits.

        Raises:
            InvalidRequest: It has other classes, or weights where there were none.
        """
        if other.classes != self.classes:
            detail = f"the run has {self.classes} classes, found {other.classes}"
            raise InvalidRequest(detail, errors=[Fault(pointer="/inputs/prediction", detail=detail)])
        if other.weighted != self.weighted:
            found = "has" if other.weighted else "lacks"
            detail = (
                f"this batch {found} sample_weight, unlike the rows that were counted; "
                "send weights with every batch, 1 where there is none"
            )
            raise InvalidRequest(detail, errors=[Fault(pointer="/inputs/sample_weight", detail=detail)])
        if (other.names, other.activation) != (self.names, self.activation):
            raise InvalidRequest("this batch has other metrics than the rows that were counted")

    def merge(self, other: _Facts) -> None:
        """Keep the coarsest dtype of each input."""
        for name, dtype in other.dtypes.items():
            self.dtypes[name] = min(self.dtypes.get(name, dtype), dtype, key=_fineness)

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON values."""
        return {**vars(self), "names": list(self.names)}

    @classmethod
    def of_dict(cls, document: Mapping[str, Any]) -> _Facts:
        """Return what :meth:`to_dict` wrote."""
        return cls(**{**document, "names": tuple(document["names"])})


class Run:
    """The metrics and the loss of all rows that batches have brought, exact in any order and any split.

    >>> run = Run(task="binary", metrics=["accuracy"])
    >>> run.add([2.0, -1.0], [1, 1]), run.add([3.0, 0.5], [1, 0])
    (2, 2)
    >>> run.result().metrics.accuracy
    0.5

    Counts, and metrics made of counts, equal those of one evaluation of all rows to the last bit. Means are the sum of
    the rows' values, rounded once. Areas and quantiles are exact while their table has room for all scores, and else
    within a bound that the result states. A batch that is refused changes nothing.

    Args:
        task: The task whose metrics are computed; None for the loss's own.
        loss: The loss's name, or an object of its name and parameters; None for metrics alone.
        metrics: Names of metrics, or the options' object, as for :func:`lossd.evaluate`.
        identity: How rows are told apart, so that none counts twice: ``position`` (each batch says where it begins),
            ``id`` (each row has an integer), or ``batch`` (each batch may have a name).
        rows: The number of rows of the data set, to tell which are missing; None if it is not known.
        scope: ``batch`` allows metrics that compare the rows of a batch with each other: the result is the mean of the
            batches' values, which depends on the split. ``rows`` refuses them.
        limit: The most rows of the tables of one metric. A row of scores takes 20 bytes.
        device: Where to compute: cpu, cuda, cuda:0.
        **parameters: The loss's parameters.

    Raises:
        Problem: The service would answer such a request with this error.
    """

    def __init__(
        self,
        task: str | None = None,
        *,
        loss: str | Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | Sequence[str] | str | None = None,
        identity: Literal["position", "id", "batch"] = "batch",
        rows: int | None = None,
        scope: Literal["rows", "batch"] = "rows",
        limit: int = ROWS,
        device: str = "cpu",
        **parameters: Any,
    ) -> None:
        outputs = ["metrics"] if loss is None else ["loss"] if metrics in ([], ()) else ["loss", "metrics"]
        subject = {"loss": loss, "task": None} if loss is not None else {"loss": None, "task": task}
        options: Any = metrics if metrics not in ([], ()) else None
        if loss is not None and task is not None:
            options = {**(options if isinstance(options, Mapping) else {"names": options}), "task": task}
            options = {name: value for name, value in options.items() if value is not None}
        composed = compose(
            **subject, prediction=None, target=None, outputs=outputs, metrics=options, keywords=parameters
        )
        _, metadata = safetensors.decode(b"".join(composed.body.pieces))
        self._start(
            {
                "request": json.loads(metadata["request"].encode()),
                "identity": identity,
                "rows": rows,
                "scope": scope,
                "limit": limit,
            },
            device,
        )

    def _start(self, definition: Mapping[str, Any], device: str) -> None:
        rows, scope, limit = (definition[name] for name in ("rows", "scope", "limit"))
        if scope not in ("rows", "batch"):
            raise InvalidRequest(f"scope is {scope!r}; it is one of rows, batch")
        if rows is not None and not (isinstance(rows, int) and rows >= 0):
            raise InvalidRequest(f"rows is {rows!r}; it is the number of rows of the data set, or null")
        if not (isinstance(limit, int) and limit >= LEAST_LIMIT):
            raise InvalidRequest(f"limit is {limit!r}; tables have at least {LEAST_LIMIT} rows")
        self._definition = dict(definition)
        self._device = torch.device(device)
        self._plan = make_plan(definition["request"])
        if self._plan.loss is not None and self._plan.reduction == "none":
            raise InvalidRequest("a run has one loss for all rows; choose reduction mean or sum")
        self._rows = identity.new(definition["identity"])
        self._targets: Fingerprint | None = None
        self._facts: _Facts | None = None
        self._totals: dict[str, RunTotal] = {}

    # Counting

    def add(
        self,
        prediction: Any = None,
        target: Any = None,
        *,
        inputs: Mapping[str, Any] | None = None,
        first: int | None = None,
        sample_id: Any = None,
        name: str | None = None,
        **further: Any,
    ) -> int:
        """Count a batch of rows.

        Args:
            prediction: An array, a tensor or a nested list.
            target: An array, a tensor or a nested list.
            inputs: Further inputs by name.
            first: The position of the batch's first row in the data set, for the identity ``position``.
            sample_id: The rows' ids, (N,) integers, for the identity ``id``.
            name: The batch's name, for the identity ``batch``. A second batch of that name counts nothing if it has
                the same content, and is refused otherwise.
            **further: Further inputs: ``sample_weight`` (N,), and so on.

        Returns:
            How many rows were counted: N, or 0 for a batch that was counted before.

        Raises:
            DuplicateRows: A row was counted before.
            Problem: The batch is wrong.
        """
        composed = compose(
            loss="", prediction=prediction, target=target, inputs={**(inputs or {}), **further}, keywords={}
        )
        tensors, _ = safetensors.decode(b"".join(composed.body.pieces))
        job = self._plan.job({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
        place = self._place(job.rows, tensors, first, sample_id, name)
        if self._rows.check(*place) == 0:
            return 0
        facts, contributions = self._measured(job, tensors)
        if self._facts is not None:
            self._facts.check(facts)
        self._check_shapes(contributions)
        for key, contribution in contributions.items():
            if key not in self._totals:
                self._totals[key] = totals.new(contribution, self._definition["limit"])
            self._totals[key].add(contribution)
        if self._facts is None:
            self._facts = facts
        self._facts.merge(facts)
        self._add_targets(tensors, first, sample_id)
        return self._rows.add(*place)

    def _place(
        self, rows: int, tensors: Mapping[str, Tensor], first: int | None, sample_id: Any, name: str | None
    ) -> tuple[Any, ...]:
        """Return the arguments that tell the run's identity which rows these are.

        Raises:
            InvalidRequest: They are missing, or belong to another identity.
        """
        kind = self._definition["identity"]
        given = {"position": ("first", first), "id": ("sample_id", sample_id), "batch": ("name", name)}
        for other, (word, value) in given.items():
            if value is not None and other != kind:
                detail = f"{word} belongs to runs of identity {other}; this one has identity {kind}"
                raise InvalidRequest(detail, errors=[Fault(pointer=f"/{word}", detail=detail)])
        word, value = given[kind]
        if value is None and kind != "batch":
            detail = f"a run of identity {kind} needs {word} with every batch"
            raise InvalidRequest(detail, errors=[Fault(pointer=f"/{word}", detail=detail)])
        if kind == "position":
            return first, rows
        if kind == "id":
            ids = np.asarray(sample_id)
            if ids.shape != (rows,):
                detail = f"sample_id has shape {ids.shape}, the batch has {rows} rows"
                raise InvalidRequest(detail, errors=[Fault(pointer="/inputs/sample_id", detail=detail)])
            return (ids,)
        return rows, name, None if name is None else identity.content_digest(tensors)

    def _measured(self, job: Job, tensors: Mapping[str, Tensor]) -> tuple[_Facts, dict[str, Contribution]]:
        """Return what a batch has in common with others, and what it contributes."""
        batch = _in_memory(job, tensors, self._device)
        with torch.no_grad(), np.errstate(all="ignore"):  # non-finite values are valid results
            task, values = measure(batch)
            found: dict[str, Contribution] = {}
            if values is not None:
                found[f"{LOSS}.sum"] = Amounts(values.numerators.numpy(), None, ())
                found[f"{LOSS}.size"] = Amounts(values.denominators.numpy(), None, ())
            elif job.recipe.want_loss:
                numerator, denominator = _reduction(batch)
                found[f"{LOSS}.sum"] = Amounts(np.array([numerator]), None, ())
                found[f"{LOSS}.size"] = Amounts(np.array([denominator]), None, ())
            weighted = "sample_weight" in tensors
            if weighted:
                weights = batch.inputs["sample_weight"].double().numpy(force=True)
                found[WEIGHT] = Amounts(weights, None, ())
            if task is not None:
                found |= self._contributions(task, job.recipe)
        return _facts(job.recipe, task, weighted), found

    def _contributions(self, task: Task, recipe: Recipe) -> dict[str, Contribution]:
        known = METRICS[str(recipe.task)]
        found: dict[str, Contribution] = {}
        reads = [part for name in recipe.metrics for part in known[name].reads or ()]
        for part in dict.fromkeys([*task.base, *task.warning_parts(recipe.metrics), *reads]):
            for key, contribution in part_of(type(task), part).contributions(task).items():
                found[f"{part}.{key}"] = contribution
        for name in recipe.metrics:
            if known[name].reads is not None:
                continue
            if self._definition["scope"] != "batch":
                detail = (
                    f"{name} compares the rows of a batch with each other, so a run has no value of it; "
                    "scope batch answers the mean of the batches' values, which depends on the split"
                )
                raise InvalidRequest(detail, errors=[Fault(pointer="/metrics/names", detail=detail)])
            [value] = known[name].function(task)
            sizes = np.array([value is not None], np.int64)
            found[f"{OF_BATCH}{name}.sum"] = Amounts(np.array([float(value or 0)]), None, ())
            found[f"{OF_BATCH}{name}.size"] = Amounts(sizes, None, ())
        return found

    def _check_shapes(self, contributions: Mapping[str, Contribution]) -> None:
        for key, contribution in contributions.items():
            shape = totals.shape_of(contribution, self._definition["limit"])
            if key in self._totals and self._totals[key].shape != shape:
                part, counted = key.partition(".")[0], self._totals[key].shape
                raise InvalidRequest(f"{part} has shape {shape} in this batch and {counted} in those counted")

    def _add_targets(self, tensors: Mapping[str, Tensor], first: int | None, sample_id: Any) -> None:
        labels = {name: tensors[name].numpy() for name in LABELS if name in tensors}
        if not labels:
            return
        weight = tensors["sample_weight"].numpy() if "sample_weight" in tensors else None
        ids = None if sample_id is None else np.asarray(sample_id)
        self._targets = self._targets or Fingerprint()
        self._targets.add(labels, sample_weight=weight, first=first, sample_id=ids)

    def merge(self, other: Run) -> None:
        """Count the rows of another run, which keeps its own.

        Raises:
            DuplicateRows: Both counted a row.
            InvalidRequest: The other run is defined differently.
        """
        if self._definition != other._definition:
            raise InvalidRequest("the other run has another definition: another task, loss, option or identity")
        if other._facts is None:
            return
        if self._facts is not None:
            self._facts.check(other._facts)
        for key in self._totals.keys() & other._totals.keys():
            if self._totals[key].shape != other._totals[key].shape:
                raise InvalidRequest(f"{key.partition('.')[0]} has another shape in the other run")
        self._rows.merge(cast("Any", other._rows))
        for key, total in other._totals.items():
            if key not in self._totals:
                self._totals[key] = totals.decode(total.kind, total.shape, total.encode())
            else:
                self._totals[key].merge(total)
        if self._facts is None:
            self._facts = replace(other._facts, dtypes=dict(other._facts.dtypes))
        self._facts.merge(other._facts)
        if other._targets is not None:
            self._targets = self._targets or Fingerprint()
            self._targets.merge(other._targets)

    # The state

    def state(self) -> bytes:
        """Return the run as bytes, for another process: the same bytes for the same rows, however they were counted."""
        described: dict[str, Any] = {"definition": self._definition, "metrics": self._versions()}
        described["targets"] = self._targets is not None
        parts = {f"total.{key}": total.encode() for key, total in self._totals.items()}
        if self._facts is not None:
            described["facts"] = self._facts.to_dict()
            described["totals"] = {key: [total.kind, total.shape] for key, total in self._totals.items()}
        if self._targets is not None:
            parts["targets"] = self._targets.encode()
        return state.encode(described, {**parts, "identity": self._rows.encode()})

    @classmethod
    def from_state(cls, data: bytes, *, device: str = "cpu") -> Run:
        """Return the run whose :meth:`state` these bytes are.

        Args:
            data: The bytes, which may come from anybody.
            device: Where to compute what is added.

        Raises:
            InvalidRequest: The bytes are damaged, or of a metric whose definition has changed since.
        """
        described, parts = state.decode(data)
        run = cls.__new__(cls)
        with state.reading():
            run._start(described["definition"], device)
            run._rows = identity.decode(parts.pop("identity"))
            if described["targets"]:
                run._targets = Fingerprint.decode(parts.pop("targets"))
            if "facts" in described:
                run._facts = _Facts.of_dict(described["facts"])
                for key, (kind, shape) in described["totals"].items():
                    run._totals[key] = totals.decode(kind, shape, parts.pop(f"total.{key}"))
            if parts or run._rows.kind != described["definition"]["identity"]:
                raise ValueError("parts that the description does not name")
            if described["metrics"] != run._versions():
                raise InvalidRequest(
                    "the definition of a metric has changed since these rows were counted; count them again"
                )
        return run

    def _versions(self) -> dict[str, int]:
        if self._facts is None:
            return {}
        return {name: METRICS[self._plan.task][name].version for name in self._facts.names}

    # The result

    def result(self) -> RunResult:
        """Return the score of the rows counted so far; it changes nothing.

        Raises:
            InvalidRequest: No row was counted.
        """
        if self._facts is None:
            raise InvalidRequest("the run has counted no rows")
        facts, codes = self._facts, list[str]()
        names = [name for name in facts.names if METRICS[self._plan.task][name].reads is not None]
        found: dict[str, Any] = {}
        if names:
            [found], [codes] = breakdown(self._plan.task, names, self._view(facts))
        elif facts.names:
            found = {"task": self._plan.task}
        for name in facts.names:
            if name not in names:
                found[name] = self._quotient(f"{OF_BATCH}{name}")
        flagged = len(names) < len(facts.names)
        loss = None
        if self._plan.loss is not None:
            loss = self._loss()
            flagged |= self._plan.loss.kind != "rows"
        warnings = [warning(code) for code in [*codes, *(["depends_on_batches"] if flagged else [])]]
        document = json.numeric({"metrics": found, "warnings": warnings})
        return RunResult(
            loss=loss,
            metrics=Record(document["metrics"]),
            counted=Record({"rows": self._rows.rows}),
            missing=[[gap.start, gap.stop] for gap in self._rows.missing(self._definition["rows"])],
            bounds=Record(self._bounds(facts)),
            targets=None if self._targets is None else str(self._targets),
            digest=state.digest(self.state()),
            warnings=[Record(entry) for entry in document["warnings"]],
        )

    def _view(self, facts: _Facts) -> View:
        """Return the totals as the view of one request without tensors."""
        cls = TASKS[self._plan.task]
        exponent = None
        if facts.weighted:
            exponent = int(np.frexp(self._sums(WEIGHT).numbers(None)[0])[1])
        view = View(
            tensors={},
            segments=Segments([1]),
            activation=facts.activation,
            sample_weight=None,
            ignore_index=None,
            parameters=self._plan.parameters,
            options=self._plan.metric_options.model_dump(exclude={"names", "task"}),
            alone=self._plan.loss is None,
            dtypes=facts.dtypes,
            classes=facts.classes,
            exponent=exponent,
        )
        grouped: dict[str, dict[str, RunTotal]] = {}
        for key, total in self._totals.items():
            part, _, contribution = key.partition(".")
            if hasattr(cls, part):
                grouped.setdefault(part, {})[contribution] = total
        counted = {part: part_of(cls, part).of_totals(found, exponent) for part, found in grouped.items()}
        return view._replace(counted=counted)

    def _sums(self, key: str) -> SumTotal:
        total = self._totals[key]
        assert isinstance(total, SumTotal)
        return total

    def _quotient(self, key: str) -> float | None:
        """Return one total divided by another, rounded once; None if that is 0."""
        size = self._sums(f"{key}.size")
        return None if size.numbers(None)[0] == 0 else float(self._sums(f"{key}.sum").over(size)[0])

    def _loss(self) -> float:
        if self._plan.reduction == "sum":
            return float(self._sums(f"{LOSS}.sum").numbers(None)[0])
        return self._quotient(LOSS) or 0.0  # as an evaluation, where nothing counts

    def _bounds(self, facts: _Facts) -> dict[str, Any]:
        bounds: dict[str, Any] = {}
        table = self._totals.get("rankings.scores")
        for name in facts.names:
            if name in AREAS and isinstance(table, TableTotal):
                within, bits = table.bounded(name)
                if within:
                    bounds[name] = {"within": within, "bits": bits}
        errors = self._totals.get("error_table.scores")
        if "error_quantiles" in facts.names and isinstance(errors, TableTotal):
            bracket = errors.quantiles(list(self._plan.metric_options.quantiles))
            if bracket is not None and (bracket[0] != bracket[1]).any():
                within = float(np.max(bracket[1] / 2 - bracket[0] / 2))
                bounds["error_quantiles"] = {"within": within, "bits": errors.tables[0].bits}
        return bounds


def _in_memory(job: Job, tensors: Mapping[str, Tensor], device: torch.device) -> TensorBatch:
    """Return a job's tensors as a batch of one request."""
    arrangement, memory = arrange_one(job, {name: tensor.data for name, tensor in tensors.items()})
    inputs, answers = columns_in(memory, job.recipe, arrangement.offsets, job.rows, 1)
    return TensorBatch(job.recipe, [job.rows], [job.numbers], inputs, answers, device)


def _facts(recipe: Recipe, task: Task | None, weighted: bool) -> _Facts:
    view = None if task is None else task.view
    return _Facts(
        names=tuple(recipe.metrics),
        classes=getattr(task, "classes", None),
        activation="real" if view is None else view.activation,
        weighted=weighted,
        dtypes={} if view is None else {name: view.sent(name) for name in view.tensors},
    )


def _reduction(batch: TensorBatch) -> tuple[float, float]:
    """Return numerator and denominator of a loss that is no mean over rows."""
    [answer] = evaluate(batch._replace(recipe=replace(batch.recipe, metrics=(), gradients=())))
    if isinstance(answer, Problem):
        raise answer
    reduction = answer["reduction"]
    return float(reduction["numerator"]), float(reduction["denominator"])


def _fineness(dtype: str) -> int:
    """Return the place of a dtype among float dtypes, the coarsest first."""
    return COARSE.index(dtype) if dtype in COARSE else len(COARSE)
